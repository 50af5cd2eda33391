"""snapshot: exactly which rows train, validate and test: deduplicated, split without leaks, frozen.

`split` decides over the rows of all batches; `near_duplicates` finds texts that are nearly equal, by what `sketches` keeps of each
batch; `screening`, `replay` and `packing` shape what trains. This module puts them together and reads a snapshot again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fullft_assets import data_report
from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.chunks import Expected, load_tokenization
from fullft_assets.errors import DataError
from fullft_assets.examples import VERSION as EXAMPLES_VERSION
from fullft_assets.examples import key_settings as example_settings
from fullft_assets.hashing import unit_hash
from fullft_assets.settings import SnapshotSettings, UseCaseSettings
from fullft_assets.snapshot import general, packing, replay, screening, sketches
from fullft_assets.snapshot.near_duplicates import near_duplicates
from fullft_assets.snapshot.packing import Packing
from fullft_assets.snapshot.parts import folder_of, pin, steady
from fullft_assets.snapshot.rows import COLUMNS, SPLITS, BatchRows
from fullft_assets.snapshot.shingles import expand
from fullft_assets.snapshot.split import Frozen, freeze_batches
from fullft_assets.store import CheckOutcome, Draft, Identity, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

__all__ = [
    "VERSION", "Frozen", "Split", "SplitName", "Training", "freeze", "label_names", "load_messages", "load_split", "load_training",
    "near_duplicates", "pack_again", "read_index", "take", "unit_hash",
]  # fmt: skip

VERSION = "6"
SplitName = Literal["train", "validation", "test"]
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
    settings = use_case.settings
    expected = Expected.of(use_case)
    usable = _usable(use_case, examples, chunks, expected)
    evaluation = screening.read_evaluation_texts(use_case) if settings.snapshot.screen else None

    def write(draft: Draft) -> Outcome:
        batches = _read_batches(store, use_case, usable, evaluation)
        packed = settings.examples.task in _PACKED
        frozen = freeze_batches(
            batches, settings.snapshot, settings.seed, task=settings.examples.task, multi_label=settings.examples.multi_label
        )
        _write_table(frozen.index, draft.path / "index.parquet")
        _write_table(frozen.places, draft.path / "places.parquet")
        left_out = sorted(set(examples) - set(usable))
        parts = {name: pin(usable[name], chunks[name]) for name in sorted(usable)}
        metadata = {**frozen.metadata, "batches_left_out": left_out, "parts": parts}
        counts = ["index.parquet"]
        values = {"labels": frozen.labels, "chunks": [CHUNKS_VERSION, expected.settings], "tokenizer": expected.tokenizer}
        measured = None
        if settings.snapshot.general is not None:
            measured = general.draw(store, use_case, frozen.index["text_hash"].to_pylist())
            values["general"] = measured.content_digest
            metadata |= {"general": measured.ref, "num_general_tokens": measured.metadata["num_tokens"]}
        if packed:
            held_out = {} if measured is None else general.texts_by_hash(store, measured)
            plan, made = _pack(store, use_case, frozen, batches, chunks, evaluation, held_out)
            _write_table(plan.to_table(), draft.path / "packing.parquet")
            counts.append("packing.parquet")
            values |= {"capacity": plan.capacity, "replay": made and made.content_digest}
            metadata |= {"num_packed_rows": plan.num_rows, "packing_fill": plan.fill, "packing_capacity": plan.capacity}
            metadata |= {"packing_cuts_to_fill": _cuts_to_fill(use_case.settings), "replay": made and made.ref}
            if made is not None:
                metadata |= {"num_replay_rows": made.metadata["num_rows"], "num_replay_tokens": made.metadata["num_tokens"]}
        # Who goes on with another artifact of this content must find the same gates open.
        values["gates"] = {check.name: check.passed for check in frozen.checks if check.severity == "error"}
        draft.identity = Identity(files=counts, values=values)
        metadata |= _report_on_data(store, use_case, frozen, metadata, batches, chunks, draft.path / "report.md")
        checks = [*frozen.checks, frozen.order, _archive_check(examples, usable)]
        if evaluation is not None:
            metadata["num_evaluation_texts"] = evaluation.num_texts
            checks.append(_screen_check(evaluation, settings.snapshot))
        return metadata, checks

    inputs: dict[str, Any] = {name: [usable[name].content_digest, chunks[name].content_digest] for name in sorted(usable)}
    if evaluation is not None:
        inputs["evaluation_texts"] = evaluation.digest
    if settings.snapshot.replay is not None:
        inputs["replay"] = replay.pin(use_case)
    if settings.snapshot.general is not None:
        inputs["general"] = general.pin(use_case)
    return store.ensure(
        use_case.name,
        "training_snapshot",
        write,
        version=VERSION,
        # It came later: snapshots without it are found under the keys that they have.
        settings=settings.snapshot.model_dump(exclude=None if settings.snapshot.general is not None else {"general"}),
        inputs=inputs,
        seed=settings.seed,
    )


def _usable(use_case: UseCase, examples: Mapping[str, Manifest], chunks: Mapping[str, Manifest], expected: Expected) -> dict[str, Manifest]:
    """Return the batches without a red gate.

    Raises:
        DataError: one of them is not tokenised as it would be today.
    """
    usable = {name: manifest for name, manifest in examples.items() if not _is_held_back(manifest)}
    mend = f"launch {use_case.name}_ingest for it (the new-documents sensor does)"
    for name, manifest in usable.items():
        if name not in chunks:
            raise DataError(f"batch {name}: examples are there, but they were never tokenised; {mend}")
        if chunks[name].inputs["labeled_examples"] != manifest.content_digest:
            raise DataError(f"batch {name}: tokenized_chunks were made from older examples; {mend}")
        for made, version, settings in (
            (manifest, EXAMPLES_VERSION, example_settings(use_case.settings)),
            (chunks[name], CHUNKS_VERSION, expected.settings),
        ):
            if (made.version, made.settings) != (version, settings):
                raise DataError(f"batch {name}: {made.stage} were made with other settings than today's; {mend}")
    others = [name for name in usable if chunks[name].inputs["tokenizer"] != expected.tokenizer]
    if others:
        raise DataError(
            f"{len(others):,} of {len(usable):,} batches were tokenised with another tokenizer than base_model's with chunks.added_tokens; "
            f"launch {use_case.name}_retokenize"
        )
    return {name: manifest for name, manifest in usable.items() if not _is_held_back(chunks[name])}


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


def _archive_check(examples: Mapping[str, Manifest], usable: Mapping[str, Manifest]) -> CheckOutcome:
    """Return whether the rows of files that were taken away since their delivery still count.

    They do as long as the settings ask for nothing that was not read then; a file that was delivered again is no loss.
    """
    delivered = {path for manifest in usable.values() for path in manifest.metadata["files"]}
    lost = {name: sorted({*manifest.metadata.get("taken_away", ())} - delivered) for name, manifest in sorted(examples.items())}
    lost = {name: paths for name, paths in lost.items() if paths}
    num_files = sum(map(len, lost.values()))
    description = ""
    if lost:
        named, more = list(lost)[:5], f" and {len(lost) - 5:,} more" if len(lost) > 5 else ""
        description = (
            f"{num_files:,} files (such as {lost[named[0]][0]}) of {len(lost):,} batches ({', '.join(named)}{more}) are left out: they were "
            "taken away since they were read with other settings; deliver them again, or change the settings back "
            "(files_are_readable of raw_documents names them)"
        )
    return CheckOutcome(
        name="archived_files_count",
        passed=not lost,
        severity="warn",
        description=description,
        metadata={"num_files_left_out": num_files, "num_batches": len(lost)},
    )


def _is_held_back(manifest: Manifest) -> bool:
    return any(not check.passed and check.severity == "error" for check in manifest.checks)


def _read_batches(
    store: Store, use_case: UseCase, usable: Mapping[str, Manifest], evaluation: screening.EvaluationTexts | None
) -> dict[str, BatchRows]:
    settings = use_case.settings.snapshot

    @cache
    def screen() -> screening.Screen:
        return screening.Screen(evaluation.texts, settings.screen_words, settings.near_duplicate_similarity)

    found = {}
    for name, manifest in usable.items():
        made = sketches.ensure(store, use_case.name, manifest, settings.near_duplicate_similarity, use_case.settings.seed)
        batch = _read_batch(store.folder(manifest), manifest.metadata["files"], store.folder(made), use_case.settings.seed)
        if evaluation is not None:
            screened = sketches.ensure_screened(store, use_case.name, manifest, evaluation, screen, settings)
            batch = replace(batch, overlaps=np.load(store.folder(screened) / "overlaps.npy", allow_pickle=False))
        found[name] = batch
    return found


def _read_batch(folder: Path, files: Mapping[str, int], index: Path, seed: int) -> BatchRows:
    import pyarrow.parquet as pq

    path = folder / "examples.parquet"
    known = set(pq.read_schema(path).names)
    return BatchRows(
        rows=pq.read_table(path, columns=[name for name in COLUMNS if name in known]),
        files=files,
        places=sketches.read_places(index),
        sketches=lambda: sketches.read_sketches(index),
        texts=lambda positions: _read_rows(path, "text", positions),
        left_out=_with_places(pq.read_table(folder / "left_out.parquet"), seed),
    )


def _with_places(left_out: pa.Table, seed: int) -> pa.Table:
    return left_out.append_column("place", [sketches.places(left_out, seed)])


def _read_rows(path: Path, column: str, positions: np.ndarray) -> pa.ChunkedArray:
    """Return a column's values at positions, in that order; row groups without one are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        group = np.searchsorted(starts, positions, "right") - 1
        order = np.argsort(group, kind="stable")
        parts = []
        for n in np.unique(group).tolist():
            mine = positions[order[group[order] == n]]
            parts += file.read_row_group(n, columns=[column])[column].take(pa.array(mine - starts[n])).chunks
        kind = file.schema_arrow.field(column).type
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.chunked_array(parts, kind).take(pa.array(back))


def _write_table(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd")


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
        batches: examples table of each batch, by batch name; the names mean nothing.
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
        rows = table.select([column for column in COLUMNS if column in table.column_names])
        others = _with_places(left_out[name], seed) if left_out else None
        found[name] = BatchRows(rows, deliveries.get(name, {}), index.places, lambda made=index.sketches: made, table["text"].take, others)
    return freeze_batches(found, settings, seed, task=task, multi_label=multi_label)


def _pack(
    store: Store,
    use_case: UseCase,
    frozen: Frozen,
    batches: Mapping[str, BatchRows],
    chunks: Mapping[str, Manifest],
    evaluation: screening.EvaluationTexts | None,
    measured: Mapping[str, str],
) -> tuple[Packing, Manifest | None]:
    """Plan the rows of training: windows of the training split in the index's order, then those of the replayed documents.

    `measured`: texts by content hash that forgetting is measured on, and that are not replayed.
    """
    settings = use_case.settings
    rows = _places(frozen.index, frozen.places)
    train = rows.of("train")
    folders = {name: store.folder(chunks[name]) for name in batches}
    lengths = _Lists.gather(train, folders, "windows").lengths
    made = None
    if settings.snapshot.replay is not None:
        held_out = rows.of("validation").texts(batches) + rows.of("test").texts(batches)
        made = replay.draw(store, use_case, int(lengths.sum()), held_out, evaluation.texts if evaluation else (), measured)
        lengths = np.concatenate([lengths, _Lists.read(store.folder(made) / "chunks.parquet", "windows").lengths])
    return packing.plan(lengths, settings.chunks.max_tokens, settings.seed, cut_to_fill=_cuts_to_fill(settings)), made


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
    rows = _places(index, places).of("train")
    folders = {name: store.folder(store.load(parts[name]["chunks"])) for name in rows.batches()}
    lengths = _Lists.gather(rows, folders, "windows").lengths
    if snapshot.metadata["replay"] is not None:
        drawn = store.folder(store.load(snapshot.metadata["replay"])) / "chunks.parquet"
        lengths = np.concatenate([lengths, _Lists.read(drawn, "windows").lengths])
    metadata = snapshot.metadata
    return packing.plan(lengths, metadata["packing_capacity"], snapshot.seed, cut_to_fill=metadata["packing_cuts_to_fill"])


def _report_on_data(
    store: Store,
    use_case: UseCase,
    frozen: Frozen,
    metadata: Mapping[str, Any],
    batches: Mapping[str, BatchRows],
    chunks: Mapping[str, Manifest],
    path: Path,
) -> dict[str, Any]:
    """Write the data report and return the lengths for the snapshot's metadata."""
    import pyarrow.parquet as pq

    settings = use_case.settings.chunks
    rows = _places(frozen.index, frozen.places)
    num_tokens = np.zeros(len(rows.position), np.int64)
    for name, mine in rows.by_batch():
        tokens = pq.read_table(store.folder(chunks[name]) / "chunks.parquet", columns=["num_tokens"])["num_tokens"].to_numpy()
        num_tokens[mine] = tokens[rows.position[mine]]
    # The first training row in the order of the texts' hashes: any, but always the same.
    number = frozen.index["split"].index("train").as_py()
    example = None
    if number >= 0:
        shown = rows.at(np.array([number]))
        windows = _Lists.gather(shown, {name: store.folder(chunks[name]) for name in set(shown.batches())}, "windows").to_lists()[0]
        tokenizer = load_tokenization(use_case).tokenizer
        example = data_report.Example(
            text=shown.texts(batches)[0],
            target=data_report.target_of(frozen.index.slice(number, 1).to_pylist()[0]),
            tokens=[tokenizer.id_to_token(i) for i in windows[0]],
        )
    report = data_report.render(metadata, num_tokens, max_tokens=settings.max_tokens, max_windows=settings.max_windows, example=example)
    path.write_text(report, encoding="utf-8")
    return data_report.length_metadata(num_tokens, settings.max_tokens)


@dataclass(frozen=True)
class _Places:
    """Where rows lie: `names[batch[i]]` and `position[i]`; `split` is SPLITS' number."""

    names: list[str]
    batch: np.ndarray
    position: np.ndarray
    split: np.ndarray

    def at(self, rows: np.ndarray) -> _Places:
        """Return those at positions or of a mask."""
        return _Places(self.names, self.batch[rows], self.position[rows], self.split[rows])

    def of(self, split: SplitName) -> _Places:
        """Return those of a split."""
        return self.at(self.split == SPLITS.index(split))

    def batches(self) -> list[str]:
        """Return the names of the batches that rows lie in."""
        return [self.names[n] for n in np.unique(self.batch).tolist()]

    def by_batch(self) -> list[tuple[str, np.ndarray]]:
        """Return each batch's name with the numbers of its rows."""
        order = np.argsort(self.batch, kind="stable")
        cuts = np.flatnonzero(np.diff(self.batch[order])) + 1
        return [(self.names[self.batch[mine[0]]], mine) for mine in np.split(order, cuts) if len(mine)]

    def texts(self, batches: Mapping[str, BatchRows]) -> list[str]:
        """Read the rows' texts."""
        found: list[str] = [""] * len(self.position)
        for name, mine in self.by_batch():
            for number, text in zip(mine.tolist(), batches[name].texts(self.position[mine]).to_pylist(), strict=True):
                found[number] = text
        return found


def _places(index: pa.Table, places: pa.Table) -> _Places:
    import pyarrow as pa

    encoded = places["batch"].combine_chunks().dictionary_encode()
    split = index["split"].combine_chunks().dictionary_encode()
    numbers = np.array([SPLITS.index(name) for name in split.dictionary.to_pylist()], np.int64)
    return _Places(
        encoded.dictionary.to_pylist(),
        encoded.indices.to_numpy(),
        places["position"].cast(pa.int64()).to_numpy(),
        numbers[split.indices.to_numpy()] if len(numbers) else np.zeros(0, np.int64),
    )


@dataclass(frozen=True)
class _Lists:
    """Windows (or their marks) of n rows, flat: row i has the windows `rows[i]` to `rows[i + 1]`, window k the `values` from
    `starts[k]` to `starts[k + 1]`."""

    values: np.ndarray
    starts: np.ndarray
    rows: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each window."""
        return np.diff(self.starts)

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Lists:
        """Flatten a column of lists of lists of int32."""
        import pyarrow.compute as pc

        rows, starts, values, windows, tokens = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [], 0, 0
        for chunk in column.chunks:
            inner = chunk.flatten()
            rows.append(np.cumsum(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(), dtype=np.int64) + windows)
            starts.append(np.cumsum(pc.list_value_length(inner).to_numpy(), dtype=np.int64) + tokens)
            values.append(inner.flatten().to_numpy())
            windows, tokens = windows + len(inner), tokens + len(values[-1])
        return cls(np.concatenate([np.zeros(0, np.int32), *values]), np.concatenate(starts), np.concatenate(rows))

    @classmethod
    def read(cls, path: Path, column: str) -> _Lists:
        """Read a whole column of a chunks file."""
        import pyarrow.parquet as pq

        return cls.of(pq.read_table(path, columns=[column])[column])

    @classmethod
    def gather(cls, rows: _Places, folders: Mapping[str, Path], column: str) -> _Lists:
        """Read a column of the chunks of some rows, in their order."""
        found, order = [cls.of(_no_lists())], [np.zeros(0, np.int64)]
        for name, mine in rows.by_batch():
            found.append(cls.of(_read_rows(folders[name] / "chunks.parquet", column, rows.position[mine])))
            order.append(mine)
        back = np.empty(len(rows.position), np.int64)
        back[np.concatenate(order)] = np.arange(len(back))
        return cls.join(found).take(back)

    @classmethod
    def join(cls, parts: Sequence[_Lists]) -> _Lists:
        """Return the rows of several, one after the other."""
        tokens, windows, starts, rows = 0, 0, [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        for part in parts:
            starts.append(part.starts[1:] + tokens)
            rows.append(part.rows[1:] + windows)
            tokens, windows = tokens + len(part.values), windows + len(part.starts) - 1
        return cls(np.concatenate([part.values for part in parts]), np.concatenate(starts), np.concatenate(rows))

    def take(self, rows: np.ndarray) -> _Lists:
        """Return the given rows, in that order."""
        counts = np.diff(self.rows)[rows]
        windows = expand(self.rows[:-1][rows], counts)
        lengths = self.lengths[windows]
        values = self.values[expand(self.starts[:-1][windows], lengths)]
        return _Lists(values, np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([[0], np.cumsum(counts)]))

    def to_lists(self) -> list[list[list[int]]]:
        """Return one list of windows a row."""
        values, starts, rows = self.values.tolist(), self.starts.tolist(), self.rows.tolist()
        windows = [values[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]
        return [windows[begin:end] for begin, end in zip(rows, rows[1:], strict=False)]


def _no_lists() -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([], pa.list_(pa.list_(pa.int32())))


@dataclass(frozen=True)
class Split:
    """The rows of one split, aligned by position.

    Attributes:
        ids, texts, groups: one a row.
        labels: what is learned, as positions in the label order: int64 [n] for one label a row; bool [n, labels] where a row may have
            several; all 0 for the tasks without labels.
        windows: token ids of each row's windows.
        marks: aligned with the windows for the tasks sft and token_classification (see `chunks.schema`), else None.
        span_labels: token_classification: the labels of each row's spans, as positions in the label order, else None.
        spans: token_classification: each row's spans as (start, end exclusive, position of the label), in characters, else None.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    groups: list[str]
    windows: list[list[list[int]]]
    marks: list[list[list[int]]] | None = None
    span_labels: list[list[int]] | None = None
    spans: list[list[tuple[int, int, int]]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, positions: Sequence[int] | np.ndarray) -> Split:
        """Return the rows at the given positions, in that order."""
        pick = [int(p) for p in positions]
        return Split(
            [self.ids[p] for p in pick],
            [self.texts[p] for p in pick],
            self.labels[pick],
            [self.groups[p] for p in pick],
            [self.windows[p] for p in pick],
            None if self.marks is None else [self.marks[p] for p in pick],
            None if self.span_labels is None else [self.span_labels[p] for p in pick],
            None if self.spans is None else [self.spans[p] for p in pick],
        )


def label_names(snapshot: Manifest) -> list[str]:
    """Return the label order of a snapshot: the order of the model's outputs."""
    return list(snapshot.metadata["labels"])


def read_index(store: Store, snapshot: Manifest) -> pa.Table:
    """Return a snapshot's index with where each row lies: `batch` (a key of its metadata `parts`) and `position` there."""
    import pyarrow.parquet as pq

    folder = store.folder(snapshot)
    index, places = pq.read_table(folder / "index.parquet"), pq.read_table(folder / "places.parquet")
    for name in places.column_names:
        index = index.append_column(name, places[name])
    return index


def load_split(store: Store, snapshot: Manifest, name: SplitName) -> Split:
    """Read one split's texts and windows from the artifacts that the snapshot froze.

    Raises:
        StoreError: one of them is gone, or was rewritten since (see `parts`).
    """
    with steady(snapshot):
        return _load_split(store, snapshot, name)


def _load_split(store: Store, snapshot: Manifest, name: SplitName) -> Split:
    import pyarrow.compute as pc

    index = read_index(store, snapshot)
    index = index.filter(pc.equal(index["split"], name))
    rows = _places(index, index)
    chunks = {batch: folder_of(store, snapshot, batch, "chunks") for batch in rows.batches()}
    texts: list[str] = [""] * len(index)
    for batch, mine in rows.by_batch():
        path = folder_of(store, snapshot, batch, "examples") / "examples.parquet"
        for number, text in zip(mine.tolist(), _read_rows(path, "text", rows.position[mine]).to_pylist(), strict=True):
            texts[number] = text
    has_marks = "marks" in index.column_names or _is_marked(chunks)
    spans = _spans(index, label_names(snapshot))
    return Split(
        index["id"].to_pylist(),
        texts,
        _label_array(index, label_names(snapshot)),
        index["group"].to_pylist(),
        _Lists.gather(rows, chunks, "windows").to_lists(),
        _Lists.gather(rows, chunks, "marks").to_lists() if has_marks else None,
        None if spans is None else [[label for _, _, label in row] for row in spans],
        spans,
    )


def load_messages(store: Store, snapshot: Manifest, name: SplitName) -> dict[str, list[dict[str, str]]]:
    """Return the conversations of one split of the task sft, by the row's id."""
    import pyarrow.compute as pc

    index = read_index(store, snapshot)
    index = index.filter(pc.equal(index["split"], name))
    rows, ids, found = _places(index, index), index["id"].to_pylist(), {}
    for batch, mine in rows.by_batch():
        path = store.folder(store.load(snapshot.metadata["parts"][batch]["examples"])) / "examples.parquet"
        for number, messages in zip(mine.tolist(), _read_rows(path, "messages", rows.position[mine]).to_pylist(), strict=True):
            found[ids[number]] = messages
    return found


def _is_marked(chunks: Mapping[str, Path]) -> bool:
    """Return whether the chunks carry marks: the column is all null for the other tasks."""
    import pyarrow.parquet as pq

    for folder in chunks.values():
        with pq.ParquetFile(folder / "chunks.parquet") as file:
            if "marks" not in file.schema_arrow.names or not file.num_row_groups:
                continue
            column = file.read_row_group(0, columns=["marks"])["marks"]
            if len(column):
                return column.null_count < len(column)
    return False


def _label_array(index: pa.Table, names: list[str]) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if "label" in index.column_names:
        return pc.index_in(index["label"], value_set=pa.array(names, pa.string())).to_numpy().astype(np.int64)
    if "labels" in index.column_names:
        lists = index["labels"].combine_chunks()
        found = np.zeros((len(index), len(names)), bool)
        code = pc.index_in(lists.flatten(), value_set=pa.array(names, pa.string())).to_numpy(zero_copy_only=False)
        found[pc.list_parent_indices(lists).to_numpy(), code.astype(np.int64)] = True
        return found
    return np.zeros(len(index), np.int64)


def _spans(index: pa.Table, names: list[str]) -> list[list[tuple[int, int, int]]] | None:
    if "spans" not in index.column_names:
        return None
    position = {name: n for n, name in enumerate(names)}
    return [[(span["start"], span["end"], position[span["label"]]) for span in spans or []] for spans in index["spans"].to_pylist()]


@dataclass(frozen=True)
class Training:
    """The packed training rows of the tasks sft and language_modeling.

    Attributes:
        windows: token ids of each window: those of the training rows in the index's order, then the replayed documents'.
        marks: aligned with the windows, 1 where a token is trained; None: all are.
        packing: the plan; its `source` is a position in `windows`.
        num_task_windows: the first ones, that are no replayed documents'; None: all.
    """

    windows: list[list[int]]
    marks: list[list[int]] | None
    packing: Packing
    num_task_windows: int | None = None


def load_training(store: Store, snapshot: Manifest) -> Training:
    """Read the packed training rows that the snapshot froze.

    Raises:
        StoreError: an artifact of them is gone, or was rewritten since (see `parts`).
    """
    with steady(snapshot):
        return _load_training(store, snapshot)


def _load_training(store: Store, snapshot: Manifest) -> Training:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    index = read_index(store, snapshot)
    rows = _places(index, index).at(pc.equal(index["split"], "train").to_numpy().astype(bool))
    chunks = {batch: folder_of(store, snapshot, batch, "chunks") for batch in rows.batches()}
    drawn = snapshot.metadata["replay"]
    more = {} if drawn is None else {"": store.folder(store.load(drawn))}

    def parts_of(column: str) -> list[_Lists]:
        return [_Lists.gather(rows, chunks, column), *(_Lists.read(folder / "chunks.parquet", column) for folder in more.values())]

    def flat(parts: list[_Lists]) -> list[list[int]]:
        return [window for row in _Lists.join(parts).to_lists() for window in row]

    parts = parts_of("windows")
    capacity = snapshot.metadata["packing_capacity"]
    plan = Packing.from_table(pq.read_table(store.folder(snapshot) / "packing.parquet"), capacity)
    marks = flat(parts_of("marks")) if _is_marked({**chunks, **more}) else None
    return Training(flat(parts), marks, plan, len(parts[0].lengths))
