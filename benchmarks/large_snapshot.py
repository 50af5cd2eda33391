"""The snapshot alone, over more documents than the other stages are run on here.

    python -m benchmarks.large_snapshot write FOLDER --documents 10000000
    python -m benchmarks.large_snapshot take FOLDER --documents 1000000

`write` makes the batches' artifacts: texts like those of `benchmarks.preparation` (runs of words of real
licence rules, some words replaced; copies and near-copies), and one token for the chunks of each. `take` takes
the snapshot over the first batches, as many as hold the documents, and says its digest, CPU seconds and peak
memory; then `take --more` adds a batch of 1%, and says the same of the snapshot that compares what is new.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.preparation import StageClock, _prepare, use_case, write_documents
from fullft_assets.artifacts import (
    CHUNKS_COLUMN,
    CHUNKS_FILE,
    EXAMPLES_FILE,
    LABELED_EXAMPLES,
    NEAR_DUPLICATE_INDEX,
    TOKENIZED_CHUNKS,
    TRAINING_SNAPSHOT,
)
from fullft_assets.store import Manifest, Store
from fullft_assets.store.hashing import text_hash

BATCH_ROWS = 333_334
_COPIES, _NEAR_COPIES, _REPLACED_WORDS = 0.02, 0.02, 0.08
_STAGES = (LABELED_EXAMPLES, TOKENIZED_CHUNKS)


class Rules:
    """The words of real licence rules, and which run of them each rule is."""

    def __init__(self) -> None:
        from fullft_assets.demos import licences

        rules = [rule for rule in licences.rules() if rule["text"].strip()]
        np.random.default_rng(17).shuffle(rules)
        words = [rule["text"].split(" ") for rule in rules]
        encoding = pa.array([word for rule in words for word in rule], pa.string()).dictionary_encode()
        self.vocabulary = encoding.dictionary
        self.codes = encoding.indices.to_numpy()
        self.starts = np.cumsum([0, *map(len, words[:-1])])
        self.kinds = np.array([rule["kind"] for rule in rules])
        self.expressions = np.array([rule["expression"] for rule in rules])

    def rows(self, count: int, seed: int) -> pa.Table:
        """Return rows with `text`, `label` and `group`."""
        draw = np.random.default_rng(seed)
        rule = draw.integers(len(self.starts), size=count)
        lengths = np.clip(draw.lognormal(4.4, 0.7, count).astype(np.int64), 10, 1_000)
        lengths = np.minimum(lengths, len(self.codes) - self.starts[rule])
        ends = np.cumsum(lengths)
        words = self.codes[np.repeat(self.starts[rule] - ends + lengths, lengths) + np.arange(ends[-1])]
        is_replaced = draw.random(len(words)) < _REPLACED_WORDS
        words[is_replaced] = self.codes[draw.integers(len(self.codes), size=int(is_replaced.sum()))]
        # A copy is one of the first of the seven texts that it is among.
        kind = draw.random(count)
        number = np.arange(count)
        is_copy = (kind < _COPIES + _NEAR_COPIES) & (number % 7 > 0)
        lists = pa.ListArray.from_arrays(np.append(0, ends).astype(np.int32), words)
        lists = lists.take(pa.array(np.where(is_copy, number // 7 * 7, number)))
        words = lists.flatten().to_numpy().copy()
        offsets = lists.offsets.to_numpy()
        near = np.flatnonzero(is_copy & (kind >= _COPIES))
        place = offsets[near] + (draw.random(len(near)) * np.diff(offsets)[near]).astype(np.int64)
        words[place] = self.codes[draw.integers(len(self.codes), size=len(near))]
        texts = pc.binary_join(pa.ListArray.from_arrays(offsets, self.vocabulary.take(pa.array(words))), " ")
        groups = [f"{name}/{n % 40}" for n, name in enumerate(self.expressions[rule].tolist())]
        return pa.table({"text": texts, "label": pa.array(self.kinds[rule]), "group": groups})


def write(folder: Path, count: int) -> None:
    """Write batches of documents to a store below a folder."""
    case = use_case(write_documents(folder / "small", 2_000))
    _prepare(Store(str(folder / "small-store")), case, StageClock())
    rules = Rules()
    for number, start in enumerate(range(0, count, BATCH_ROWS)):
        size = min(BATCH_ROWS, count - start)
        _write_batch(folder, rules, f"batch-{number:04d}", number, start, size)
        print(number, size, flush=True)


def _write_batch(
    folder: Path, rules: Rules, name: str, number: int, start: int, size: int
) -> tuple[Manifest, Manifest]:
    """Write the examples and the chunks of one batch."""
    case = use_case(folder / "small")
    small, store = Store(str(folder / "small-store")), Store(str(folder / "store"))
    examples, chunks = (small.artifacts(case.name, stage)[0] for stage in _STAGES)
    source = f"delivery-{number:04d}.jsonl"
    delivered_ns = 10**18 + number
    batch = {"batch": name, "num_rows": size}
    files = {"files": {source: delivered_ns}, "num_valid": size, "num_quarantined": 0}
    rows = partial(_rows, rules, number, start, size, source, delivered_ns)
    inputs: dict[str, Any] = {"number": number, "size": size}
    made = _copy(small, store, examples, {**batch, **files}, inputs, EXAMPLES_FILE, rows)
    inputs = {**chunks.inputs, LABELED_EXAMPLES: made.content_digest}
    return made, _copy(small, store, chunks, batch, inputs, CHUNKS_FILE, partial(_one_token, size))


def _rows(rules: Rules, number: int, start: int, size: int, source: str, delivered_ns: int) -> dict[str, Any]:
    table = rules.rows(size, number)
    return {
        "id": [f"document-{row:08d}" for row in range(start, start + size)],
        "text_hash": list(map(text_hash, table["text"].to_pylist())),
        "source": [source] * size,
        "row": np.arange(1, size + 1),
        "delivered_ns": np.full(size, delivered_ns),
        **{column: table[column] for column in table.column_names},
    }


def _one_token(size: int) -> dict[str, Any]:
    return {CHUNKS_COLUMN: [[[1]]] * size, "num_tokens": np.full(size, 160)}


def _copy(
    small: Store,
    store: Store,
    part: Manifest,
    metadata: dict[str, Any],
    inputs: dict[str, Any],
    file: str,
    columns: Callable[[], dict[str, Any]],
) -> Manifest:
    """Write an artifact like one of a small batch, but for some columns of a table; the others are null."""

    def write_files(draft: Any) -> Any:
        for name in part.files:
            (draft.path / name).write_bytes((small.folder(part) / name).read_bytes())
        schema = pq.read_schema(draft.path / file)
        values = columns()
        arrays = [
            pa.nulls(metadata["num_rows"], field.type)
            if field.name not in values
            else values[field.name].cast(field.type)
            if isinstance(values[field.name], pa.ChunkedArray)
            else pa.array(values[field.name], field.type)
            for field in schema
        ]
        table = pa.table(arrays, schema=schema)
        # As the stages write examples.
        pq.write_table(table, draft.path / file, compression="lz4", row_group_size=1 << 14)
        return {**part.metadata, **metadata}, part.checks

    return store.ensure(
        part.case,
        part.stage,
        write_files,
        version=part.version,
        settings=part.settings,
        inputs=inputs,
        seed=part.seed,
    )


def take(folder: Path, count: int, *, more: bool) -> dict[str, Any]:
    """Take a snapshot over the first batches, or the one after it with 1% more documents, and return what it
    took.
    """
    import scipy.sparse  # noqa: F401  # imported for its time

    from fullft_assets import snapshot
    from fullft_assets.snapshot.all_rows import BatchRows  # noqa: F401  # imported for its time
    from fullft_assets.snapshot.near_text.engine import load_engine

    load_engine().get_or_infer_runner_type()  # looks for Ray, which is imported for its time
    store = Store(str(folder / "store"))
    case = use_case(folder / "small")
    number = -(-count // BATCH_ROWS)
    parts = [
        dict(sorted((part.metadata["batch"], part) for part in store.artifacts(case.name, stage))[:number])
        for stage in _STAGES
    ]
    assert len(parts[0]) == number, "write more documents first"
    num_documents = sum(part.metadata["num_rows"] for part in parts[0].values())
    if more:
        added = _write_batch(
            folder, Rules(), f"more-{number:04d}", 10_000 + number, 10**8, num_documents // 100
        )
        for batches, part in zip(parts, added, strict=True):
            batches[part.metadata["batch"]] = part
    for part in store.artifacts(case.name, NEAR_DUPLICATE_INDEX):
        if not more or part.metadata["batch"].startswith("more-"):
            store.delete(part)
    for part in store.artifacts(case.name, TRAINING_SNAPSHOT):
        if not more or part.metadata["num_batches"] != number:
            store.delete(part)
    assert more == bool(store.artifacts(case.name, TRAINING_SNAPSHOT)), "take the first one before"
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    taken = snapshot.take(store, case, *parts)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "documents": sum(part.metadata["num_rows"] for part in parts[0].values()),
        "batches": len(parts[0]),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_mib": after.ru_maxrss >> 10,
        "peak_before_mib": before.ru_maxrss >> 10,
        "digest": taken.content_digest,
        "rows": [taken.metadata[f"num_{split}_rows"] for split in ("train", "validation", "test")],
        "left_out": taken.metadata["left_out"],
    }


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_snapshot", description=__doc__)
    parser.add_argument("act", choices=["write", "take"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--more", action="store_true", help="measure what 1%% more documents take after it")
    parsed = parser.parse_args()
    if parsed.act == "write":
        write(parsed.folder, parsed.documents)
    else:
        print(json.dumps(take(parsed.folder, parsed.documents, more=parsed.more)))


if __name__ == "__main__":
    _main()
