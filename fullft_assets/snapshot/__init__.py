"""snapshot: exactly which rows train, validate and test: deduplicated, split without leaks, frozen.

The split is a keyed hash of the group (without groups, of the text): stable as data grows and
independent of the order of arrival. Nothing is joined into clusters, because joining near-duplicates
and groups percolates; instead, training rows near to a held-out row are left out, and counted.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fullft_assets import data_report
from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.chunks import Tokenization
from fullft_assets.chunks import key_settings as chunk_settings
from fullft_assets.errors import DataError
from fullft_assets.examples import VERSION as EXAMPLES_VERSION
from fullft_assets.examples import key_settings as example_settings
from fullft_assets.settings import SnapshotSettings
from fullft_assets.store import CheckOutcome, Draft, Manifest, Outcome, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

VERSION = "2"
SplitName = Literal["train", "validation", "test"]
_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")


def take(store: Store, use_case: UseCase, examples: Mapping[str, Manifest], chunks: Mapping[str, Manifest]) -> Manifest:
    """Freeze the snapshot over every batch that is validated and tokenised.

    Args:
        store: where the batches' artifacts live.
        use_case: the settings.
        examples: `labeled_examples` by batch name; batches with a red gate are left out.
        chunks: `tokenized_chunks` by batch name.

    Raises:
        DataError: see `freeze`; or a batch was not tokenised, or not from today's examples, settings and tokenizer.
    """
    import pyarrow.parquet as pq

    settings = use_case.settings
    usable = {name: manifest for name, manifest in examples.items() if _is_usable(name, manifest, chunks, use_case)}

    def write(draft: Draft) -> Outcome:
        tables = {name: pq.read_table(store.folder(m) / "examples.parquet") for name, m in usable.items()}
        frozen = freeze(tables, {name: m.metadata["files"] for name, m in usable.items()}, settings.snapshot, settings.seed)
        pq.write_table(frozen.index, draft.path / "index.parquet")
        parts = {name: {"examples": usable[name].ref, "chunks": chunks[name].ref} for name in sorted(usable)}
        left_out = sorted(set(examples) - set(usable))
        lengths = _report_on_data(store, use_case, frozen, tables, chunks, draft.path / "report.md")
        return {**frozen.metadata, **lengths, "batches_left_out": left_out, "parts": parts}, frozen.checks

    return store.ensure(
        use_case.name,
        "training_snapshot",
        write,
        version=VERSION,
        settings=settings.snapshot.model_dump(),
        inputs={name: [usable[name].content_digest, chunks[name].content_digest] for name in sorted(usable)},
        seed=settings.seed,
    )


def _report_on_data(
    store: Store, use_case: UseCase, frozen: Frozen, tables: Mapping[str, pa.Table], chunks: Mapping[str, Manifest], path: Path
) -> dict[str, Any]:
    """Write the data report and return the lengths for the snapshot's metadata."""
    import pyarrow.parquet as pq

    settings = use_case.settings.chunks
    tokens = {
        name: pq.read_table(store.folder(manifest) / "chunks.parquet", columns=["num_tokens"])["num_tokens"].to_numpy()
        for name, manifest in chunks.items()
        if name in tables
    }
    rows = frozen.index.select(["split", "batch", "position", "label"]).to_pylist()
    num_tokens = [int(tokens[row["batch"]][row["position"]]) for row in rows]
    # The first training row in the order of the texts' hashes: any, but always the same.
    shown = next(row for row in rows if row["split"] == "train")
    text = tables[shown["batch"]]["text"][shown["position"]].as_py()
    tokenization = Tokenization.load(resolve_base_model(use_case.settings.base_model, use_case.project_root), settings)
    pieces = [tokenization.tokenizer.id_to_token(i) for i in tokenization.windows([text])[0][0]]
    report = data_report.render(
        frozen.metadata,
        num_tokens,
        max_tokens=settings.max_tokens,
        max_windows=settings.max_windows,
        example=(text, shown["label"], pieces),
    )
    path.write_text(report, encoding="utf-8")
    return data_report.length_metadata(num_tokens, settings.max_tokens)


def _is_usable(name: str, examples: Manifest, chunks: Mapping[str, Manifest], use_case: UseCase) -> bool:
    if any(not check.passed and check.severity == "error" for check in examples.checks):
        return False
    mend = f"launch {use_case.name}_ingest for it (the new-documents sensor does)"
    if name not in chunks:
        raise DataError(f"batch {name}: examples are there, but they were never tokenised; {mend}")
    if chunks[name].inputs["labeled_examples"] != examples.content_digest:
        raise DataError(f"batch {name}: tokenized_chunks were made from older examples; {mend}")
    tokenizer = resolve_base_model(use_case.settings.base_model, use_case.project_root) / "tokenizer.json"
    for made, version, settings in (
        (examples, EXAMPLES_VERSION, example_settings(use_case.settings)),
        (chunks[name], CHUNKS_VERSION, chunk_settings(use_case.settings)),
    ):
        if (made.version, made.settings) != (version, settings):
            raise DataError(f"batch {name}: {made.stage} were made with other settings than today's; {mend}")
    if chunks[name].inputs["tokenizer"] != hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:20]:
        raise DataError(f"batch {name}: tokenized_chunks were made with another tokenizer than base_model's; {mend}")
    return True


@dataclass
class Row:
    """One example on its way into the snapshot; `text` is only kept for the near-duplicate search."""

    batch: str
    position: int
    id: str
    text: str
    text_hash: str
    label: str
    group: str
    source: str
    row: int
    split: str = ""


@dataclass(frozen=True)
class Frozen:
    """A snapshot before it is written: `index` has one row an example, `labels` the label order."""

    index: pa.Table
    labels: list[str]
    metadata: dict[str, Any]
    checks: list[CheckOutcome]


def unit_hash(seed: int, purpose: str, value: str) -> float:
    """Return a number in [0, 1) that only depends on the arguments."""
    key = f"{seed}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=7).digest()) / 2**56


def freeze(batches: Mapping[str, pa.Table], deliveries: Mapping[str, Sequence[str]], settings: SnapshotSettings, seed: int) -> Frozen:
    """Deduplicate and split the valid examples of all batches.

    Args:
        batches: examples table of each batch, by batch name; names sort by delivery.
        deliveries: source files of each batch: a file delivered again supersedes its older rows.
        settings: shares, caps and floors.
        seed: key of every hash.

    Raises:
        DataError: there are no rows, fewer than two labels, or a label is too rare to be split.
    """
    dropped: Counter[str] = Counter()
    rows = _unique(_current(_collect(batches), deliveries, dropped), dropped)
    labels = _require_labels(rows, settings)
    _assign(rows, settings, seed)
    _cap_heldout(rows, settings, seed, dropped)
    _withhold_near_duplicates(rows, settings.near_duplicate_similarity, seed, dropped)
    _subsample(rows, "train", settings.max_train_rows, seed, dropped)
    _subsample(rows, "validation", settings.max_validation_rows, seed, dropped)
    kept = sorted((row for row in rows if row.split in ("train", "validation", "test")), key=lambda r: (r.split, r.text_hash))
    _require_every_label(kept, labels)
    return Frozen(_index(kept), labels, _metadata(kept, labels, dropped, len(batches)), _checks(kept, settings))


def _collect(batches: Mapping[str, pa.Table]) -> list[Row]:
    rows = []
    for name in sorted(batches):
        table = batches[name]
        columns = [table[c].to_pylist() for c in ("id", "text", "text_hash", "label", "group", "source", "row")]
        for position, (id_, text, hash_, label, group, source, number) in enumerate(zip(*columns, strict=True)):
            rows.append(Row(name, position, id_, text, hash_, label, group or hash_, source, number))
    return rows


def _current(rows: list[Row], deliveries: Mapping[str, Sequence[str]], dropped: Counter[str]) -> list[Row]:
    newest = {source: name for name in sorted(deliveries) for source in deliveries[name]}
    current = [row for row in rows if newest.get(row.source, row.batch) == row.batch]
    dropped["superseded by a newer delivery of their file"] += len(rows) - len(current)
    return current


def _unique(rows: list[Row], dropped: Counter[str]) -> list[Row]:
    by_text: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_text[row.text_hash].append(row)
    unique = []
    for same in by_text.values():
        if len({row.label for row in same}) > 1:
            dropped["equal text with another label in another batch"] += len(same)
            continue
        # A row without a group of its own, then the smallest group and id, wins: the choice (and with it the split)
        # does not depend on the order of arrival.
        unique.append(min(same, key=lambda row: (row.group != row.text_hash, row.group, row.id, row.batch)))
        dropped["duplicate text of another batch"] += len(same) - 1
    return unique


def _require_labels(rows: list[Row], settings: SnapshotSettings) -> list[str]:
    if not rows:
        raise DataError("snapshot: no valid examples in any batch; look at quarantined_examples for the reasons")
    counts = Counter(row.label for row in rows)
    if len(counts) < 2:
        raise DataError(f"snapshot: only one label (`{next(iter(counts))}`) in {len(rows):,} rows; a classifier needs two")
    for label, count in sorted(counts.items(), key=lambda item: item[1]):
        if count < settings.min_rows_per_label:
            row = next(row for row in rows if row.label == label)
            raise DataError(
                f"{row.source}:{row.row}: label `{label}` has {count} row{'s' * (count > 1)}, fewer than "
                f"snapshot.min_rows_per_label ({settings.min_rows_per_label}); deliver more, or leave it out of examples.labels"
            )
    return sorted(counts)


def _assign(rows: list[Row], settings: SnapshotSettings, seed: int) -> None:
    for row in rows:
        place = unit_hash(seed, "split", row.group)
        if place < settings.test_share:
            row.split = "test"
        elif place < settings.test_share + settings.validation_share:
            row.split = "validation"
        else:
            row.split = "train"


def _cap_heldout(rows: list[Row], settings: SnapshotSettings, seed: int, dropped: Counter[str]) -> None:
    taken: Counter[tuple[str, str]] = Counter()
    for row in sorted(rows, key=lambda row: unit_hash(seed, "cap", row.text_hash)):
        if row.split != "train":
            taken[row.split, row.group] += 1
            if taken[row.split, row.group] > settings.max_heldout_rows_per_group:
                row.split = "over the cap"
                dropped["held-out rows over the cap of their group"] += 1


def _withhold_near_duplicates(rows: list[Row], similarity: float, seed: int, dropped: Counter[str]) -> None:
    for guarded, others in (("test", ("validation", "train")), ("validation", ("train",))):
        held_out = [row for row in rows if row.split == guarded]
        candidates = [row for row in rows if row.split in others]
        near = near_duplicates([row.text for row in held_out], [row.text for row in candidates], similarity, seed)
        for position in near:
            dropped[f"{candidates[position].split} rows near a {guarded} row"] += 1
            candidates[position].split = "near a held-out row"


def near_duplicates(reference: list[str], candidates: list[str], similarity: float, seed: int) -> dict[int, int]:
    """Return the candidates that are near-duplicates of a reference text.

    MinHash bands propose pairs (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3) and
    the exact Jaccard similarity of the word shingles confirms each.

    Returns:
        For each near candidate's position the position of one reference text it is near to.
    """
    if not reference or not candidates:
        return {}
    from rensa import RMinHash

    shingles = [_shingles(text) for text in [*reference, *candidates]]
    sketches = np.array(RMinHash.digests_from_token_sets([list(s) for s in shingles], _NUM_PERMUTATIONS, seed % 2**32), np.uint32)
    num_rows = _band_rows(similarity)
    found: dict[int, int] = {}
    tried: set[tuple[int, int]] = set()
    for start in range(0, _NUM_PERMUTATIONS - num_rows + 1, num_rows):
        keys = [band.tobytes() for band in sketches[:, start : start + num_rows]]
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for position, key in enumerate(keys[: len(reference)]):
            buckets[key].append(position)
        for position, key in enumerate(keys[len(reference) :]):
            if position in found:
                continue
            for other in buckets.get(key, ()):
                if (position, other) in tried:
                    continue
                tried.add((position, other))
                if _jaccard(shingles[len(reference) + position], shingles[other]) >= similarity:
                    found[position] = other
                    break
    return found


def _shingles(text: str) -> frozenset[str]:
    words = _WORD.findall(text.lower())
    if len(words) <= _SHINGLE_WORDS:
        return frozenset([" ".join(words) or text])
    return frozenset(" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(len(words) - _SHINGLE_WORDS + 1))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _band_rows(similarity: float) -> int:
    # The largest bands that still propose a pair exactly at the threshold with probability 0.99 or more.
    for num_rows in (16, 12, 8, 6, 5, 4, 3, 2):
        if 1 - (1 - similarity**num_rows) ** (_NUM_PERMUTATIONS // num_rows) >= 0.99:
            return num_rows
    return 1


def _subsample(rows: list[Row], split: str, most: int | None, seed: int, dropped: Counter[str]) -> None:
    chosen = sorted((r for r in rows if r.split == split), key=lambda r: unit_hash(seed, "subsample", r.text_hash))
    for row in chosen[most if most is not None else len(chosen) :]:
        row.split = "over the maximum"
        dropped[f"{split} rows over snapshot.max_{split}_rows"] += 1


def _require_every_label(rows: list[Row], labels: list[str]) -> None:
    for split in ("train", "validation", "test"):
        missing = sorted(set(labels) - {row.label for row in rows if row.split == split})
        if missing:
            raise DataError(
                f"snapshot: no {split} row with label `{missing[0]}` (its rows share too few groups or are near-duplicates); "
                "deliver more groups with it, or leave it out of examples.labels"
            )


def _index(rows: list[Row]) -> pa.Table:
    import pyarrow as pa

    names = ("split", "id", "text_hash", "label", "group", "source", "row", "batch", "position")
    return pa.table({name: [getattr(row, name) for row in rows] for name in names})


def _metadata(rows: list[Row], labels: list[str], dropped: Counter[str], num_batches: int) -> dict[str, Any]:
    counts = {split: Counter(r.label for r in rows if r.split == split) for split in ("train", "validation", "test")}
    return {
        "labels": labels,
        "num_batches": num_batches,
        "num_train_rows": counts["train"].total(),
        "num_validation_rows": counts["validation"].total(),
        "num_test_rows": counts["test"].total(),
        "num_test_groups": len({row.group for row in rows if row.split == "test"}),
        "label_counts": {split: dict(sorted(found.items())) for split, found in counts.items()},
        "left_out": {reason: count for reason, count in dropped.items() if count},
    }


def _checks(rows: list[Row], settings: SnapshotSettings) -> list[CheckOutcome]:
    splits = {s: [r for r in rows if r.split == s] for s in ("train", "validation", "test")}
    shared = 0
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for field in ("id", "text_hash", "group"):
            shared += len({getattr(r, field) for r in splits[first]} & {getattr(r, field) for r in splits[second]})
    num_train = len(splits["train"])
    enough = num_train >= settings.min_train_rows
    plenty = num_train >= settings.recommended_train_rows
    return [
        CheckOutcome(
            name="splits_are_disjoint",
            passed=shared == 0,
            description=""
            if not shared
            else f"{shared:,} ids, texts or groups stand in two splits; give documents unique ids (documents.id)",
            metadata={"num_shared": shared},
        ),
        CheckOutcome(
            name="training_rows_suffice",
            passed=enough,
            description=""
            if enough
            else f"{num_train:,} training rows, fewer than snapshot.min_train_rows ({settings.min_train_rows:,}); deliver more",
            metadata={"num_train_rows": num_train},
        ),
        CheckOutcome(
            name="training_rows_are_plenty",
            passed=plenty,
            severity="warn",
            description=""
            if plenty
            else f"{num_train:,} training rows; full fine-tuning wants {settings.recommended_train_rows:,} and more, or it overfits",
            metadata={"num_train_rows": num_train},
        ),
    ]


@dataclass(frozen=True)
class Split:
    """The rows of one split, aligned by position; `labels` [n] are positions in the label order."""

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    groups: list[str]
    windows: list[list[list[int]]]

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
        )


def label_names(snapshot: Manifest) -> list[str]:
    """Return the label order of a snapshot: the order of the model's outputs."""
    return list(snapshot.metadata["labels"])


def load_split(store: Store, snapshot: Manifest, name: SplitName) -> Split:
    """Read one split's texts and windows from the artifacts that the snapshot froze."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    index = pq.read_table(store.folder(snapshot) / "index.parquet")
    index = index.filter(pc.equal(index["split"], name))
    position = {label: i for i, label in enumerate(label_names(snapshot))}
    texts: list[str | None] = [None] * len(index)
    windows: list[list[list[int]]] = [[]] * len(index)
    batches, rows = index["batch"].to_pylist(), np.array(index["position"].to_pylist(), np.int64)
    refs = snapshot.metadata["parts"]
    for batch in sorted(set(batches)):
        places = np.array([i for i, b in enumerate(batches) if b == batch])
        take = pa.array(rows[places])
        examples = store.folder(store.load(refs[batch]["examples"])) / "examples.parquet"
        chunks = store.folder(store.load(refs[batch]["chunks"])) / "chunks.parquet"
        found = pq.read_table(examples, columns=["text"])["text"].take(take).to_pylist()
        cut = pq.read_table(chunks, columns=["windows"])["windows"].take(take).to_pylist()
        for place, text, parts in zip(places, found, cut, strict=True):
            texts[place], windows[place] = text, parts
    labels = np.array([position[label] for label in index["label"].to_pylist()], np.int64)
    return Split(index["id"].to_pylist(), texts, labels, index["group"].to_pylist(), windows)
