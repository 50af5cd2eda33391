"""monitoring: production_documents, finetuned_checkpoint, training_snapshot -> drift_report.

Run by a launcher or by hand: `python -m fullft_assets.workloads.monitoring --job URI`. The reference, the
features of held-out rows, is an artifact of its own: made once for each checkpoint, and read for each window after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets import monitoring
from fullft_assets.base_model import ModelFolder, with_rights
from fullft_assets.chunks import Tokenization
from fullft_assets.jobs import Job
from fullft_assets.jobs.progress import Progress
from fullft_assets.models.inference import predict
from fullft_assets.monitoring import DriftVerdict, Features
from fullft_assets.snapshot import label_names, load_split
from fullft_assets.store import Draft, Manifest, Store, artifact_key
from fullft_assets.workloads.entry import run_workload

if TYPE_CHECKING:
    import pyarrow as pa

REFERENCE_STAGE = "drift_reference"


@dataclass(frozen=True)
class ProductionRows:
    """The readable rows of a window, and the chosen ones: one row for each group."""

    texts: list[str]
    chosen: np.ndarray
    num_delivered: int
    num_labelled: int
    has_groups: bool

    @classmethod
    def read(cls, table: pa.Table, seed: int, limit: int) -> ProductionRows:
        """Read a `documents.parquet` table; rows without a text are not compared, but counted."""
        rows = table.select(["text", "label", "group"]).to_pylist()
        rows = [row for row in rows if row["text"] and row["text"].strip()]
        texts, groups = [row["text"] for row in rows], [row["group"] for row in rows]
        return cls(
            texts=texts,
            chosen=monitoring.one_per_group(texts, groups, seed, limit=limit),
            num_delivered=len(table),
            num_labelled=sum(row["label"] is not None for row in rows),
            has_groups=any(groups),
        )


@dataclass(frozen=True)
class Reader:
    """The monitored model: texts -> features."""

    model_folder: ModelFolder
    tokenization: Tokenization
    progress: Progress

    def read(self, texts: list[str], vocabulary: set[str]) -> Features:
        """Return the features of full texts, each pooled over its windows."""
        windows, counts = self.tokenization.windows_with_lengths(texts)
        prediction = predict(self.model_folder, windows, progress=self.progress)
        return monitoring.build_features(texts, counts, vocabulary, prediction.probabilities, prediction.embeddings)


def work(job: Job, store: Store, progress: Progress) -> None:
    """Write the drift report of one window."""
    import pyarrow.parquet as pq

    inputs = job.load_inputs(store)
    settings = job.settings.monitoring
    window = ProductionRows.read(
        pq.read_table(store.folder(inputs["production_documents"]) / "documents.parquet"), job.settings.seed, settings.max_window_rows
    )
    progress.say(f"{window.num_delivered:,} production documents, {len(window.chosen):,} after keeping one for each group")
    features = None
    if len(window.chosen) < settings.min_window_rows:
        verdict = monitoring.insufficient(len(window.chosen), settings)
    else:
        model_folder = with_rights(store.folder(inputs["finetuned_checkpoint"]) / "model", job.settings)
        reader = Reader(model_folder, Tokenization.load_saved(model_folder, job.settings.chunks), progress)
        reference, vocabulary = _load_reference(job, store, inputs, reader)
        progress.raise_if_stopped()
        features = reader.read([window.texts[index] for index in window.chosen], vocabulary)
        labels = label_names(inputs["training_snapshot"])
        progress.raise_if_stopped()
        verdict = monitoring.compare(reference, features, settings, job.settings.seed, labels)
        if job.settings.examples.group and not window.has_groups:
            note = f"no row has a `{job.settings.examples.group}`; related texts in bursts may raise false alarms"
            verdict = verdict.model_copy(update={"notes": [*verdict.notes, note]})
    progress.say(f"{verdict.status}: {verdict.summary}")
    with store.create(job.case, job.stage, job.key, version=monitoring.VERSION, seed=job.settings.seed) as draft:
        _write_report(draft, job, inputs, window, features, verdict)


def _load_reference(job: Job, store: Store, inputs: dict[str, Manifest], reader: Reader) -> tuple[Features, set[str]]:
    """Return the reference's features and the training texts' vocabulary, made now unless they exist."""
    settings = {
        "reference_rows": job.settings.monitoring.reference_rows,
        "chunks": job.settings.chunks.model_dump(include={"max_tokens", "stride", "max_windows", "boundaries"}),
    }
    sources = {name: inputs[name].content_digest for name in ("training_snapshot", "finetuned_checkpoint")}
    key = artifact_key(REFERENCE_STAGE, monitoring.VERSION, settings, sources, job.settings.seed)
    manifest = store.find(job.case, REFERENCE_STAGE, key)
    if manifest is None:
        with store.create(job.case, REFERENCE_STAGE, key, version=monitoring.VERSION, seed=job.settings.seed) as draft:
            num_rows, num_words = _write_reference(draft.path, job, store, inputs["training_snapshot"], reader)
            manifest = draft.commit(
                settings=settings, inputs=sources, metadata=monitoring.ReferenceMetadata(num_rows=num_rows, num_words=num_words).as_dict()
            )
    folder = store.folder(manifest)
    words = (folder / "vocabulary.txt").read_text(encoding="utf-8")
    return Features.load(folder / "features.npz"), set(words.split("\n"))


def _write_reference(folder: Path, job: Job, store: Store, snapshot: Manifest, reader: Reader) -> tuple[int, int]:
    reader.progress.say("reading the held-out rows as the reference ...")
    vocabulary = monitoring.vocabulary_of(load_split(store, snapshot, "train").texts)
    splits = [load_split(store, snapshot, name) for name in ("validation", "test")]
    texts = [text for split in splits for text in split.texts]
    groups = [group for split in splits for group in split.groups]
    chosen = monitoring.one_per_group(texts, groups, job.settings.seed, limit=job.settings.monitoring.reference_rows)
    features = reader.read([texts[index] for index in chosen], vocabulary)
    features.save(folder / "features.npz")
    (folder / "vocabulary.txt").write_text("\n".join(sorted(vocabulary)), encoding="utf-8")
    return len(features), len(vocabulary)


def _write_report(
    draft: Draft,
    job: Job,
    inputs: dict[str, Manifest],
    window: ProductionRows,
    features: Features | None,
    verdict: DriftVerdict,
) -> Manifest:
    """Commit the report; a window with insufficient data was not read by the model, so it has no features."""
    title = f"Drift report of `{job.case}`"
    (draft.path / "verdict.json").write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
    (draft.path / "report.md").write_text(monitoring.render_report(verdict, title), encoding="utf-8")
    if features is not None:
        features.save(draft.path / "features.npz")
    return draft.commit(
        settings=monitoring.key_settings(job.settings),
        inputs={name: manifest.content_digest for name, manifest in inputs.items()},
        metadata=monitoring.DriftMetadata(
            status=verdict.status,
            summary=verdict.summary,
            table=monitoring.render_table(verdict),
            num_rows=verdict.num_rows,
            num_delivered=window.num_delivered,
            num_unreadable=window.num_delivered - len(window.texts),
            num_related_left_out=len(window.texts) - len(window.chosen),
            num_labelled=window.num_labelled,
            num_reference_rows=verdict.num_reference_rows,
            p_values={test.name: test.p_value for test in verdict.tests},
            effects={test.name: test.effect for test in verdict.tests},
        ).as_dict(),
        checks=[monitoring.check(verdict)],
    )


if __name__ == "__main__":
    run_workload(work)
