"""monitoring: production_documents, finetuned_checkpoint, training_snapshot, earlier drift reports ->
drift_report.

Run by a launcher or by hand: `python -m fullft_assets.launch.workloads.monitoring --job URI`. The scale,
fitted on held-out rows, is an artifact of its own: made once for each checkpoint, and read for each window
after that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets import monitoring
from fullft_assets.artifacts import (
    DOCUMENTS_FILE,
    DRIFT_SCALE,
    FINETUNED_CHECKPOINT,
    PRODUCTION_DOCUMENTS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.base_model import ModelFolder, resolve_base_model, with_rights
from fullft_assets.chunks import Tokenization
from fullft_assets.conversations import Message, text_of
from fullft_assets.documents import RawMetadata
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.models.inference import embed, load_base
from fullft_assets.monitoring import (
    DriftMetadata,
    DriftVerdict,
    FarDocument,
    Features,
    History,
    Past,
    Scale,
    Sums,
    Vocabulary,
)
from fullft_assets.progress import Progress
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.production import MAX_WINDOW_ROWS
from fullft_assets.snapshot import SplitName, label_names, load_split, load_values
from fullft_assets.store import Manifest, Store, artifact_key
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import OpenedModel, open_model
from fullft_assets.tasks.classification.baselines import classify

_WORDS = "words.npy"


@dataclass(frozen=True)
class ProductionRows:
    """The readable rows of a window.

    Attributes:
        places: file and row that each text is from.
        sample: indices of rows that are independent of each other.
    """

    texts: list[str]
    places: list[tuple[str, int]]
    sample: np.ndarray
    num_delivered: int
    num_unreadable: int
    num_labelled: int

    @classmethod
    def read(cls, table: pa.Table, seed: int, limit: int) -> "ProductionRows":
        """Read a `documents.parquet` table; rows without a text are not compared, but counted."""
        columns = ["source", "row", "text", "messages", "label", "labels", "spans", "group"]
        rows = [row for row in table.select(columns).to_pylist() if row["text"] and row["text"].strip()]
        texts = [incoming_text(row["text"], row["messages"]) for row in rows]
        return cls(
            texts=texts,
            places=[(row["source"], row["row"]) for row in rows],
            sample=monitoring.independent_rows(texts, [row["group"] for row in rows], seed, limit=limit),
            num_delivered=len(table),
            num_unreadable=len(table) - len(rows),
            num_labelled=sum(
                any(row[target] is not None for target in ("label", "labels", "spans")) for row in rows
            ),
        )


def incoming_text(text: str, messages: Sequence[Message] | None) -> str:
    """Return what comes in of a document: of a conversation, what users and tools write. A system prompt is
    the same for all of them, and the assistant is a model.
    """
    return text_of([message for message in messages or () if message["role"] in ("user", "tool")]) or text


@dataclass(frozen=True)
class Reader:
    """The monitored model and its base model: texts -> features.

    Attributes:
        model: None where it does not predict one label of a text: texts alone are watched then.
    """

    base_model: ModelFolder
    base_tokenization: Tokenization
    model: OpenedModel | None
    settings: UseCaseSettings
    progress: Progress

    @classmethod
    def open(cls, job: Job, store: Store, checkpoint: Manifest, progress: Progress) -> "Reader":
        """Return the reader of a checkpoint."""
        settings = job.settings
        base = with_rights(resolve_base_model(settings.base_model, Path(job.project_root)), settings)
        return cls(
            base_model=base,
            base_tokenization=Tokenization.load_saved(base, settings.chunks),
            model=open_model(store, checkpoint, settings, progress)
            if task_of(settings.examples).has_one_label
            else None,
            settings=settings,
            progress=progress,
        )

    def read(self, texts: list[str], vocabulary: Vocabulary) -> Features:
        """Return the features of full texts, each pooled over its chunks.

        Embeddings and tokens are the base model's, which no training moves; only predictions are the
        monitored model's.
        """
        probabilities = None
        if self.model is not None:
            probabilities = classify(self.model, self.settings, texts, self.progress)
            self.progress.raise_if_stopped()
        chunks, counts = self.base_tokenization.chunks_with_lengths(texts)
        embeddings = embed(load_base(self.base_model), chunks, progress=self.progress)
        return monitoring.build_features(texts, counts, vocabulary, probabilities, embeddings)


def work(job: Job, store: Store, progress: Progress) -> None:
    """Write the drift report of one window."""
    inputs = job.load_inputs(store)
    settings = job.settings.monitoring
    history = History.of_inputs(inputs)
    table = pq.read_table(store.folder(inputs[PRODUCTION_DOCUMENTS]) / DOCUMENTS_FILE)
    window = ProductionRows.read(table, job.settings.seed, MAX_WINDOW_ROWS)
    progress.say(
        f"{window.num_delivered:,} production documents, {len(window.sample):,} after thinning out related"
        " ones"
    )
    with store.create(
        job.case, job.stage, job.key, version=monitoring.VERSION, seed=job.settings.seed
    ) as draft:
        sums = None
        scale_ref = "" if history.scale is None else history.scale.ref
        if monitoring.is_read_by_another_window(inputs[PRODUCTION_DOCUMENTS]):
            verdict = DriftVerdict(
                status="insufficient_data",
                num_rows=0,
                notes=["its files were delivered again, and are in a window of their own"],
            )
        elif len(window.sample) < settings.min_window_rows:
            verdict = monitoring.insufficient(len(window.sample), settings)
        else:
            labels = label_names(inputs[TRAINING_SNAPSHOT])
            reader = Reader.open(job, store, inputs[FINETUNED_CHECKPOINT], progress)
            scale, vocabulary, scale_ref = _load_scale(job, store, inputs, reader)
            if history.scale is not None:
                scale = scale.with_content_of(
                    Scale.load(store.folder(history.scale) / monitoring.SCALE, settings.drift_tests)
                )
                scale_ref = history.scale.ref
            progress.raise_if_stopped()
            features = reader.read([window.texts[index] for index in window.sample], vocabulary)
            sums = scale.sums(features)
            sums.save(draft.path / monitoring.SUMS)
            monitoring.write_far(draft.path / monitoring.FAR, _far(scale, features, window))
            verdict = monitoring.judge(
                sums, _read_sums(store, history.content), _read_sums(store, history.model), settings, labels
            )
            if verdict.alarms:
                tests_that_moved = (change.test for change in verdict.comparisons if change.drifted)
                pasts = [
                    history.content if test.outlives_champion else history.model
                    for test in monitoring.open_tests(dict.fromkeys(tests_that_moved))
                ]
                reports = {report.ref: report for past in pasts for report in past.reference}
                reference_texts = (text for report in reports.values() for text in _texts(store, report, job))
                words = monitoring.shifted_words(
                    reference_texts, (window.texts[index] for index in window.sample)
                )
                explanation = monitoring.render_explanation(
                    f"What moved in `{job.case}`", verdict.moved, words
                )
                (draft.path / monitoring.EXPLANATION).write_text(explanation, encoding="utf-8")
        progress.say(f"{verdict.status}: {verdict.summary}")
        metadata = _metadata(verdict, window, sums, history, scale_ref, inputs[PRODUCTION_DOCUMENTS])
        numbers = [
            (DriftMetadata.of(report).window, DriftMetadata.of(report).measured) for report in history.windows
        ]
        report = monitoring.render_report(
            verdict, f"Drift report of `{job.case}`", [*numbers, (metadata.window, metadata.measured)]
        )
        (draft.path / "verdict.json").write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
        (draft.path / "report.md").write_text(report, encoding="utf-8")
        draft.commit(
            settings=monitoring.key_settings(job.settings),
            inputs={
                name: manifest.content_digest
                for name, manifest in inputs.items()
                if name != TRAINING_SNAPSHOT
            },
            metadata=metadata.as_dict(),
            checks=[monitoring.check(verdict)],
        )


def _far(scale: Scale, features: Features, window: ProductionRows) -> list[FarDocument]:
    distances = scale.distances(features)
    if distances is None:
        return []
    farthest = np.argsort(-distances, kind="stable")[: monitoring.MAX_DOCUMENTS]
    places = [window.places[window.sample[index]] for index in farthest]
    return [
        FarDocument(source=source, row=row, distance=float(distances[index]))
        for index, (source, row) in zip(farthest, places, strict=True)
        if distances[index] > 1
    ]


def _load_scale(
    job: Job, store: Store, inputs: dict[str, Manifest], reader: Reader
) -> tuple[Scale, Vocabulary, str]:
    """Return the scale, the training texts' vocabulary and the reference of their artifact, which is made now
    unless it exists.

    The checkpoint alone determines them: an erasure from the snapshot makes no other scale, on which earlier
    windows would be unknown.
    """
    settings = {
        "base_model": job.settings.base_model,
        "chunks": monitoring.key_settings(job.settings)["chunks"],
        **monitoring.other_tests(job.settings.monitoring),
    }
    key = artifact_key(
        DRIFT_SCALE,
        monitoring.VERSION,
        settings,
        {"checkpoint": inputs[FINETUNED_CHECKPOINT].content_digest},
        job.settings.seed,
    )
    manifest = store.find(job.case, DRIFT_SCALE, key)
    if manifest is None:
        with store.create(
            job.case, DRIFT_SCALE, key, version=monitoring.VERSION, seed=job.settings.seed
        ) as draft:
            metadata = _write_scale(draft.path, job, store, inputs[TRAINING_SNAPSHOT], reader)
            manifest = draft.commit(
                settings=settings,
                inputs={
                    name: inputs[name].content_digest for name in (TRAINING_SNAPSHOT, FINETUNED_CHECKPOINT)
                },
                metadata=metadata.as_dict(),
            )
    folder = store.folder(manifest)
    return (
        Scale.load(folder / monitoring.SCALE, job.settings.monitoring.drift_tests),
        Vocabulary(np.load(folder / _WORDS), job.settings.seed),
        manifest.ref,
    )


def _write_scale(
    folder: Path, job: Job, store: Store, snapshot: Manifest, reader: Reader
) -> monitoring.ScaleMetadata:
    reader.progress.say("fitting the scale on held-out rows ...")
    vocabulary = Vocabulary.of(_incoming_texts(store, snapshot, "train")[0], job.settings.seed)
    splits = [_incoming_texts(store, snapshot, name) for name in ("validation", "test")]
    texts = [text for split_texts, _ in splits for text in split_texts]
    groups = [group for _, split_groups in splits for group in split_groups]
    # Held-out rows that the scale is fitted on: several for each of its coordinates.
    sample = monitoring.independent_rows(texts, groups, job.settings.seed, limit=1_000)
    features = reader.read([texts[index] for index in sample], vocabulary)
    num_labels = 0 if reader.model is None else len(label_names(snapshot))
    scale = Scale.fit(features, num_labels, job.settings.monitoring.drift_tests)
    scale.save(folder / monitoring.SCALE)
    np.save(folder / _WORDS, vocabulary.hashes)
    return monitoring.ScaleMetadata(
        num_rows=len(features), num_words=len(vocabulary.hashes), num_held_out=len(scale.held_out)
    )


def _incoming_texts(store: Store, snapshot: Manifest, name: SplitName) -> tuple[list[str], list[str]]:
    split = load_split(store, snapshot, name, chunks=False)
    messages = load_values(store, snapshot, name, "messages")
    texts = [incoming_text(text, messages[id_]) for id_, text in zip(split.ids, split.texts, strict=True)]
    return texts, split.groups


def _read_sums(store: Store, past: Past[Manifest]) -> Past[Sums]:
    reference, recent = (
        [Sums.load(store.folder(report) / monitoring.SUMS) for report in reports] for reports in past
    )
    return Past(reference, recent)


def _texts(store: Store, report: Manifest, job: Job) -> list[str]:
    table = pq.read_table(store.folder(store.load(DriftMetadata.of(report).documents)) / DOCUMENTS_FILE)
    window = ProductionRows.read(table, job.settings.seed, MAX_WINDOW_ROWS)
    return [window.texts[index] for index in window.sample]


def _metadata(
    verdict: DriftVerdict,
    window: ProductionRows,
    sums: Sums | None,
    history: History,
    scale: str,
    documents: Manifest,
) -> DriftMetadata:
    numbers = {f"p_{comparison.name}": comparison.p_value for comparison in verdict.comparisons}
    numbers |= {f"effect_{comparison.name}": comparison.effect for comparison in verdict.comparisons}
    if verdict.homogeneity is not None:
        numbers["p_reference_is_homogeneous"] = verdict.homogeneity
    if sums is not None:
        numbers |= sums.as_numbers()
    return DriftMetadata(
        window=RawMetadata.of(documents).batch,
        status=verdict.status,
        summary=verdict.summary,
        table=monitoring.render_table(verdict),
        num_rows=verdict.num_rows,
        num_delivered=window.num_delivered,
        num_unreadable=window.num_unreadable,
        num_related_left_out=len(window.texts) - len(window.sample),
        num_labelled=window.num_labelled,
        num_reference_windows=verdict.num_reference_windows,
        reference=[report.ref for report in history.model.reference],
        recent=[report.ref for report in history.model.recent],
        kept_reference=[]
        if history.kept_past is None
        else [report.ref for report in history.kept_past.reference],
        kept_recent=[] if history.kept_past is None else [report.ref for report in history.kept_past.recent],
        scale=scale,
        documents=documents.ref,
        measured=numbers,
    )


if __name__ == "__main__":
    run_workload(work)
