"""A snapshot is taken: its batches are read, their rows split, windows packed, and all of it frozen under one key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.chunks import Expected, load_tokenization
from fullft_assets.examples.agreement import metadata_of
from fullft_assets.examples.outcomes import agreement_outcome
from fullft_assets.examples.rules import Rule, rules_for
from fullft_assets.settings import SnapshotSettings, UseCaseSettings
from fullft_assets.snapshot import data_report, general, packing, replay, screening, sketches
from fullft_assets.snapshot.batches import archive_check, read_batches, source_check, usable_batches, with_places
from fullft_assets.snapshot.packing import Packing
from fullft_assets.snapshot.parts import pin
from fullft_assets.snapshot.places import Lists, Places, places_of
from fullft_assets.snapshot.rows import COLUMNS, BatchRows
from fullft_assets.snapshot.split import Frozen, freeze_batches
from fullft_assets.store import CheckOutcome, Draft, Identity, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.settings.use_case import UseCase

VERSION = "8"
#: Tasks whose training rows are packed windows without a label.
_PACKED = ("sft", "language_modeling")


def take(store: Store, use_case: UseCase, examples: Mapping[str, Manifest], chunks: Mapping[str, Manifest]) -> Manifest:
    """Freeze the snapshot over every batch that is validated and tokenised.

    Its content digest is that of the rows, their splits and what their windows are made with: it does not depend on the batches.

    Args:
        store: where the batches' artifacts live.
        use_case: the settings.
        examples: `labeled_examples` by batch name; batches with a red gate are left out.
        chunks: `tokenized_chunks` by batch name, likewise.

    Raises:
        DataError: see `freeze`; or a batch was not tokenised, or not from today's examples, settings and tokenizer.
    """
    settings, expected = use_case.settings, Expected.of(use_case)
    usable = usable_batches(use_case, examples, chunks, expected)
    evaluation = screening.read_evaluation_texts(use_case) if settings.snapshot.screen else None
    taking = _Taking(store, use_case, examples, usable, {name: chunks[name] for name in usable}, expected, evaluation)
    return store.ensure(
        use_case.name,
        "training_snapshot",
        taking.write,
        version=VERSION,
        # It came later: snapshots without it are found under the keys that they have.
        settings={
            **settings.snapshot.model_dump(exclude=None if settings.snapshot.general is not None else {"general"}),
            **({"min_agreement": settings.examples.min_agreement} if "annotators_agree" in taking.rules else {}),
        },
        inputs=taking.inputs(),
        seed=settings.seed,
    )


@dataclass(frozen=True)
class _Taking:
    """A snapshot that is being taken.

    Attributes:
        store: where the batches' artifacts live.
        use_case: the settings.
        examples: `labeled_examples` of all batches, by name.
        usable: those without a red gate.
        chunks: the `tokenized_chunks` of these.
        expected: what the chunks were made with.
        evaluation: external evaluation texts, where there are any.
    """

    store: Store
    use_case: UseCase
    examples: Mapping[str, Manifest]
    usable: Mapping[str, Manifest]
    chunks: Mapping[str, Manifest]
    expected: Expected
    evaluation: screening.EvaluationTexts | None

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rules of examples that are judged over all batches as well."""
        settings = self.use_case.settings.examples
        return {
            name: rule for name, rule in rules_for(settings).items() if name == "annotators_agree" and settings.task == "classification"
        }

    def inputs(self) -> dict[str, Any]:
        """Return what the snapshot is made of, by content."""
        chosen = self.use_case.settings.snapshot
        inputs: dict[str, Any] = {
            name: [self.usable[name].content_digest, self.chunks[name].content_digest] for name in sorted(self.usable)
        }
        if self.evaluation is not None:
            inputs["evaluation_texts"] = self.evaluation.digest
        if chosen.replay is not None:
            inputs["replay"] = replay.pin(self.use_case)
        if chosen.general is not None:
            inputs["general"] = general.pin(self.use_case)
        return inputs

    def write(self, draft: Draft) -> Outcome:
        """Write the snapshot's tables and the data report."""
        settings = self.use_case.settings
        batches = read_batches(self.store, self.use_case, self.usable, self.chunks, self.evaluation)
        frozen = freeze_batches(
            batches, settings.snapshot, settings.seed, task=settings.examples.task, multi_label=settings.examples.multi_label
        )
        _write_table(frozen.index, draft.path / "index.parquet")
        _write_table(frozen.places, draft.path / "places.parquet")
        files = ["index.parquet"]
        values = {"labels": frozen.labels, "chunks": [CHUNKS_VERSION, self.expected.settings], "tokenizer": self.expected.tokenizer}
        parts = {name: pin(self.usable[name], self.chunks[name]) for name in sorted(self.usable)}
        metadata = {
            **frozen.metadata,
            **metadata_of(frozen.agreement),
            "batches_left_out": sorted(set(self.examples) - set(self.usable)),
            "parts": parts,
        }
        measured = self._draw_general(frozen)
        if measured is not None:
            values["general"] = measured.content_digest
            metadata |= {"general": measured.ref, "num_general_tokens": measured.metadata["num_tokens"]}
        more: list[CheckOutcome] = []
        if settings.examples.task in _PACKED:
            plan, replayed = self._pack(frozen, batches, measured)
            _write_table(plan.to_table(), draft.path / "packing.parquet")
            files.append("packing.parquet")
            values |= {"capacity": plan.capacity, "replay": replayed and replayed.content_digest}
            metadata |= _told_of_packing(plan, replayed, settings)
            more = [_full_check(plan), *([_control_check(replayed)] if replayed is not None else [])]
        # Who goes on with another artifact of this content must find the same gates open.
        values["gates"] = {check.name: check.passed for check in frozen.checks if check.severity == "error"}
        draft.identity = Identity(files=files, values=values)
        metadata |= self._report_on_data(frozen, metadata, batches, draft.path / "report.md")
        checks = [*frozen.checks, frozen.order, archive_check(self.examples, self.usable), source_check(self.usable), *more]
        for rule in self.rules.values():
            # Which rows of a batch an error holds back is that batch's; here it is told.
            found = agreement_outcome(rule, frozen.agreement, settings.examples)
            checks.append(found.model_copy(update={"severity": "warn"}))
        if self.evaluation is not None:
            metadata["num_evaluation_texts"] = self.evaluation.num_texts
            checks.append(_screen_check(self.evaluation, settings.snapshot))
        return metadata, checks

    def _draw_general(self, frozen: Frozen) -> Manifest | None:
        if self.use_case.settings.snapshot.general is None:
            return None
        return general.draw(self.store, self.use_case, frozen.index["text_hash"].to_pylist())

    def _pack(self, frozen: Frozen, batches: Mapping[str, BatchRows], measured: Manifest | None) -> tuple[Packing, Manifest | None]:
        """Plan the rows of training: windows of the training split in the index's order, then those of the replayed documents.

        `measured`: the general set, whose texts are not replayed.
        """
        settings = self.use_case.settings
        rows = places_of(frozen.index, frozen.places)
        lengths = self._windows(rows.of("train")).lengths
        replayed = None
        if settings.snapshot.replay is not None:
            held_out = rows.of("validation").texts(batches) + rows.of("test").texts(batches)
            screened = self.evaluation.texts if self.evaluation else ()
            kept_out = {} if measured is None else general.texts_by_hash(self.store, measured)
            replayed = replay.draw(self.store, self.use_case, int(lengths.sum()), held_out, screened, kept_out)
            lengths = np.concatenate([lengths, _replayed_lengths(self.store, replayed)])
        plan = packing.plan(lengths, settings.chunks.max_tokens, settings.seed, cut_to_fill=_cuts_to_fill(settings))
        return plan, replayed

    def _windows(self, rows: Places) -> Lists:
        return Lists.gather(rows, {name: self.store.folder(self.chunks[name]) for name in rows.batches()}, "windows")

    def _report_on_data(self, frozen: Frozen, metadata: Mapping[str, Any], batches: Mapping[str, BatchRows], path: Path) -> dict[str, Any]:
        """Write the data report and return the lengths for the snapshot's metadata."""
        import pyarrow.parquet as pq

        settings = self.use_case.settings.chunks
        rows = places_of(frozen.index, frozen.places)
        num_tokens = np.zeros(len(rows.position), np.int64)
        for name, mine in rows.by_batch():
            tokens = pq.read_table(self.store.folder(self.chunks[name]) / "chunks.parquet", columns=["num_tokens"])["num_tokens"]
            num_tokens[mine] = tokens.to_numpy()[rows.position[mine]]
        example = self._example(frozen, rows, batches)
        report = data_report.render(metadata, num_tokens, max_tokens=settings.max_tokens, max_windows=settings.max_windows, example=example)
        path.write_text(report, encoding="utf-8")
        return data_report.length_metadata(num_tokens, settings.max_tokens)

    def _example(self, frozen: Frozen, rows: Places, batches: Mapping[str, BatchRows]) -> data_report.Example | None:
        """Return the first training row in the order of the texts' hashes: any, but always the same."""
        number = frozen.index["split"].index("train").as_py()
        if number < 0:
            return None
        shown, tokenizer = rows.at(np.array([number])), load_tokenization(self.use_case).tokenizer
        return data_report.Example(
            text=shown.texts(batches)[0],
            target=data_report.target_of(frozen.index.slice(number, 1).to_pylist()[0]),
            tokens=[tokenizer.id_to_token(i) for i in self._windows(shown).to_lists()[0][0]],
        )


def _told_of_packing(plan: Packing, replayed: Manifest | None, settings: UseCaseSettings) -> dict[str, Any]:
    metadata = {
        "num_packed_rows": plan.num_rows,
        "packing_fill": plan.fill,
        "packing_capacity": plan.capacity,
        "packing_cuts_to_fill": _cuts_to_fill(settings),
        "replay": replayed and replayed.ref,
    }
    if replayed is not None:
        metadata |= {"num_replay_rows": replayed.metadata["num_rows"], "num_replay_tokens": replayed.metadata["num_tokens"]}
    return metadata


def _full_check(plan: Packing) -> CheckOutcome:
    """Return whether training computes little else than tokens."""
    return CheckOutcome(
        name="rows_are_full",
        passed=plan.is_full,
        severity="warn",
        description=""
        if plan.is_full
        else f"packed rows are {plan.fill:.1%} full: {plan.num_rows:,} of {plan.capacity:,} tokens where {plan.num_rows_needed:,} would hold "
        "them; the texts' lengths do not add up to chunks.max_tokens: try another, such as a multiple of the commonest length",
        metadata={"packing_fill": plan.fill, "num_packed_rows": plan.num_rows, "num_rows_needed": plan.num_rows_needed},
    )


def _control_check(replayed: Manifest) -> CheckOutcome:
    """Return whether replayed documents are read as text alone."""
    count = replayed.metadata["num_with_control_tokens"]
    return CheckOutcome(
        name="replay_holds_no_control_tokens",
        passed=not count,
        severity="warn",
        description=f"{count:,} of {replayed.metadata['num_rows']:,} replayed documents hold special tokens of the model, which it learns as "
        "ends and marks that the text does not have; remove them from snapshot.replay.path"
        if count
        else "",
        metadata={"num_with_control_tokens": count},
    )


def _screen_check(evaluation: screening.EvaluationTexts, settings: SnapshotSettings) -> CheckOutcome:
    """Return whether the evaluation texts are long enough to be found within others."""
    num_short = screening.num_too_short(evaluation.texts, settings.screen_words)
    return CheckOutcome(
        name="evaluation_texts_can_be_found",
        passed=not num_short,
        severity="warn",
        description=""
        if not num_short
        else f"{num_short:,} of {len(evaluation.texts):,} evaluation texts have fewer than snapshot.screen_words ({settings.screen_words}) "
        "words: training rows that hold one among other words are not found, only near-copies of it are; lower snapshot.screen_words",
        metadata={"num_evaluation_texts": len(evaluation.texts), "num_too_short": num_short},
    )


def freeze(
    batches: Mapping[str, pa.Table],
    deliveries: Mapping[str, Mapping[str, int]],
    settings: SnapshotSettings,
    seed: int,
    *,
    task: str = "classification",
    multi_label: bool = False,
    left_out: Mapping[str, pa.Table] | None = None,
) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Args:
        batches: examples table of each batch (`examples.Examined.stored`), by batch name; the names mean nothing.
        deliveries: source files of each batch with their times of delivery: a file delivered again supersedes its older rows.
        settings: shares, caps and floors.
        seed: key of every hash.
        task: what an example is.
        multi_label: the column `labels` holds the target, not `label`.
        left_out: sound rows that are no examples of their batch, by batch name (see `examples.Examined.left_out`).

    Raises:
        DataError: there are no rows, fewer than two labels, or a label is too rare to be split.
    """
    found = {}
    for name, table in batches.items():
        index = sketches.build(table, settings.near_duplicate_similarity, seed)
        rows = table.select([column for column in (*COLUMNS, "spare") if column in table.column_names])
        others = with_places(left_out[name], seed) if left_out else None
        found[name] = BatchRows(rows, deliveries.get(name, {}), index.places, lambda made=index.sketches: made, table["text"].take, others)
    return freeze_batches(found, settings, seed, task=task, multi_label=multi_label)


def _cuts_to_fill(settings: UseCaseSettings) -> bool:
    # Where windows end anywhere, one cut more costs nothing; an answer must not be parted from its question.
    return settings.examples.task == "language_modeling" and settings.chunks.boundaries == "any"


def pack_again(store: Store, snapshot: Manifest, index: pa.Table, places: pa.Table, parts: Mapping[str, Mapping[str, str]]) -> Packing:
    """Plan the rows of training for what is left of a snapshot.

    Args:
        store: where the batches' artifacts live.
        snapshot: the snapshot as it was.
        index, places: its tables with the rows that are left.
        parts: its batches' artifacts as they are now.
    """
    rows = places_of(index, places).of("train")
    folders = {name: store.folder(store.load(parts[name]["chunks"])) for name in rows.batches()}
    lengths = Lists.gather(rows, folders, "windows").lengths
    if snapshot.metadata["replay"] is not None:
        lengths = np.concatenate([lengths, _replayed_lengths(store, store.load(snapshot.metadata["replay"]))])
    metadata = snapshot.metadata
    return packing.plan(lengths, metadata["packing_capacity"], snapshot.seed, cut_to_fill=metadata["packing_cuts_to_fill"])


def _replayed_lengths(store: Store, replayed: Manifest) -> np.ndarray:
    return Lists.read(store.folder(replayed) / "chunks.parquet", "windows").lengths


def _write_table(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")
