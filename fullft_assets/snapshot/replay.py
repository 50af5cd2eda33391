"""Replay: general documents mixed into training, so that the model keeps what it knew.

Which documents is a keyed hash of their contents: the choice depends neither on the order of the files nor on what
else lies there, and a larger share takes the same documents and more. A document that overlaps a held-out row, or
an external evaluation set, is passed over as a training row would be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import VERSION as CHUNKS_VERSION
from fullft_assets.chunks import Tokenization, chunk, tokenizer_digest
from fullft_assets.chunks import key_settings as chunk_settings
from fullft_assets.chunks import schema as chunk_schema
from fullft_assets.errors import DataError
from fullft_assets.hashing import messages_hash, text_hash, unit_hash
from fullft_assets.settings import DocumentsSettings, ReplaySettings, Task
from fullft_assets.snapshot.screening import Reference, Screen, Way, locate, read_external
from fullft_assets.store import Draft, Identity, Manifest, Outcome, Store, digest

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.use_case import UseCase

VERSION = "2"
STAGE = "replay_documents"
_SETTING = "snapshot.replay"
#: Characters of candidates kept for each token that is needed: twice what usual texts have. Where they do not suffice, more are read.
_CHARACTERS_A_TOKEN = 8
_MORE = 8
#: Documents that are looked at together: as many as are guessed to be needed, within bounds.
_USUAL_CHARACTERS_A_TOKEN = 4
_MIN_BLOCK_ROWS = 64
_MAX_BLOCK_CHARACTERS = 1 << 23


def draw(
    store: Store,
    use_case: UseCase,
    num_task_tokens: int,
    held_out: Sequence[str],
    screened: Sequence[str] = (),
    measured: Mapping[str, str] | None = None,
) -> Manifest:
    """Choose the general documents that train beside the task's, and write them as an artifact of their own.

    Its `examples.parquet` and `chunks.parquet` have the columns of a batch's artifacts, row by row in the order of the draw. Of the
    last document only the windows that are needed are kept, so that the share is met to within a window.

    Metadata: `num_rows`, `num_tokens`, `share` (as it came out), `num_files`, `num_unusable` (reason -> rows), `num_near_held_out`,
    `num_screened` and `num_near_general` (documents passed over).

    Args:
        store: where the artifact is found or written.
        use_case: settings; `snapshot.replay` must be set.
        num_task_tokens: tokens of the training rows as they are packed (lengths of all windows, special tokens included).
        held_out: texts of the validation and test rows.
        screened: texts of external evaluation sets.
        measured: texts by content hash that forgetting is measured on (`general`): neither they nor their near-duplicates train.

    Raises:
        DataError: the path is not there, a file of it cannot be read, it holds nothing usable, or there is too little of it; the message
            says how many tokens are missing.
    """
    settings = use_case.settings
    replay = settings.snapshot.replay
    assert replay is not None, "there is nothing to draw from"
    task = settings.examples.task
    num_needed = num_replay_tokens(num_task_tokens, replay.share)
    files = pin(use_case)
    measured = measured or {}
    tokenizer = tokenizer_digest(resolve_base_model(settings.base_model, use_case.project_root), settings.chunks, task)

    def write(draft: Draft) -> Outcome:
        import pyarrow.parquet as pq

        near_measured = _Near(list(measured.values()), use_case)
        drawn = _draw(use_case, replay, num_needed, [_Screen(held_out, use_case), _Screen(screened, use_case), near_measured], measured)
        pq.write_table(drawn.examples, draft.path / "examples.parquet", compression="zstd")
        pq.write_table(drawn.chunks, draft.path / "chunks.parquet", compression="zstd")
        # Not of the files: they hold from where, and when, documents were delivered.
        documents = drawn.examples["text_hash"].to_pylist()
        made_with = {"chunks": chunk_settings(settings), "tokenizer": tokenizer}
        draft.identity = Identity(files=[], values={"documents": documents, "num_tokens": drawn.num_tokens, **made_with})
        counts = {"num_files": len(files), "num_unusable": drawn.num_unusable}
        counts |= dict(zip(("num_near_held_out", "num_screened", "num_near_general"), drawn.num_passed_over, strict=True))
        share = drawn.num_tokens / (drawn.num_tokens + num_task_tokens) if drawn.num_tokens else 0.0
        return {"num_rows": len(drawn.examples), "num_tokens": drawn.num_tokens, "share": share, **counts}, []

    return store.ensure(
        use_case.name,
        STAGE,
        write,
        version=f"{VERSION}-{CHUNKS_VERSION}",
        settings={
            "chunks": chunk_settings(settings),
            **settings.snapshot.model_dump(include={"screen_words", "near_duplicate_similarity"}),
        },
        inputs={
            "files": digest(files),
            "tokenizer": tokenizer,
            "num_tokens": num_needed,
            "num_task_tokens": num_task_tokens,
            "held_out": digest(sorted(held_out)),
            "screened": digest(sorted(screened)),
            **({"measured": digest(sorted(measured))} if measured else {}),
        },
        seed=settings.seed,
    )


def num_replay_tokens(num_task_tokens: int, share: float) -> int:
    """Return how many tokens of general data make up the share of all: replay / (replay + task) >= share."""
    return math.ceil(num_task_tokens * share / (1 - share))


def pin(use_case: UseCase) -> dict[str, str]:
    """Return the digest of each file of `snapshot.replay.path`: what pins the general documents, without reading their rows.

    Raises:
        DataError: the path is not there, or holds no file that can be read.
    """
    replay = use_case.settings.snapshot.replay
    if replay is None:
        return {}
    source, files = locate(replay.path, use_case, _SETTING)
    return {file.path: source.digest(file) for file in files}


class _Screen:
    """Texts that no general document may overlap, looked up only when there are any."""

    def __init__(self, texts: Sequence[str], use_case: UseCase):
        settings = use_case.settings.snapshot
        words, similarity = settings.screen_words, settings.near_duplicate_similarity
        self._screen = Screen(texts, words, similarity, use_case.settings.seed) if texts else None

    def overlapping(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Return for each text whether it shares a run of words with one of these, or is a near-duplicate of one."""
        return np.zeros(len(texts), bool) if self._screen is None else self._screen.overlapping(texts)


class _Near:
    """Texts that no general document may be a near-duplicate of; a shared run of words, such as a licence's, is no overlap here."""

    def __init__(self, texts: Sequence[str], use_case: UseCase):
        similarity = use_case.settings.snapshot.near_duplicate_similarity
        self._reference = Reference(texts, similarity, use_case.settings.seed) if texts else None

    def overlapping(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Return for each text whether it is a near-duplicate of one of these."""
        return np.zeros(len(texts), bool) if self._reference is None else self._reference.is_near(texts)


@dataclass
class Drawn:
    """Documents in the order of the draw; `num_passed_over` counts those that a screen kept out, by screen."""

    examples: pa.Table
    chunks: pa.Table
    num_tokens: int
    num_unusable: Counter[str]
    num_passed_over: list[int]


def _draw(
    use_case: UseCase, replay: ReplaySettings, num_needed: int, screens: Sequence[_Screen | _Near], left_out: Collection[str]
) -> Drawn:
    most = num_needed * _CHARACTERS_A_TOKEN
    while True:
        candidates = Candidates.read(use_case, replay.path, most, left_out, _SETTING)
        drawn = take_tokens(use_case, candidates, num_needed, screens)
        if drawn.num_tokens >= num_needed:
            return drawn
        if candidates.is_all:
            raise _too_little(replay, num_needed, candidates, drawn)
        most *= _MORE


def _too_little(replay: ReplaySettings, num_needed: int, candidates: Candidates, drawn: Drawn) -> DataError:
    why = [f"{count:,} rows: {reason}" for reason, count in drawn.num_unusable.most_common(3)]
    why += [
        f"{count:,} overlap {what}"
        for what, count in zip(("held-out rows", "snapshot.screen", "snapshot.general"), drawn.num_passed_over, strict=True)
        if count
    ]
    told = f" ({'; '.join(why)})" if why else ""
    if not len(candidates.table):
        return DataError(f"{_SETTING}: {replay.path} holds no usable document{told}; give each row a field `text` (for sft: or messages)")
    return DataError(
        f"{_SETTING}: {replay.path} holds {drawn.num_tokens:,} usable tokens{told}, {num_needed - drawn.num_tokens:,} fewer than "
        f"snapshot.replay.share ({replay.share:g}) needs; add documents, or lower the share"
    )


@dataclass(frozen=True)
class Candidates:
    """The documents that come first in the draw, in its order, each content once; `is_all`: there are no others."""

    table: pa.Table
    is_all: bool
    num_unusable: Counter[str]

    @classmethod
    def read(cls, use_case: UseCase, path: str, most: int, left_out: Collection[str], setting: str) -> Candidates:
        """Read every document and keep the first ones, of at least `most` characters together; at most some times as many are held.

        Args:
            use_case: where relative paths start; the task and the seed.
            path: of the documents.
            most: characters.
            left_out: content hashes of documents that are none of them.
            setting: named in messages.
        """
        unusable: Counter[str] = Counter()
        kept, held, last, is_all = [], 0, 1.0, True
        for table in _usable(use_case, path, unusable, left_out, setting):
            early = table.filter(np.asarray(table["place"]) <= last)
            is_all &= len(early) == len(table)
            kept.append(early)
            held += _num_characters(early).sum()
            if held > 2 * most:
                first = _first(kept, most)
                is_all &= len(first) == sum(map(len, kept))
                kept, held, last = [first], _num_characters(first).sum(), first["place"][-1].as_py()
        return cls(_first(kept, None), is_all, +unusable)


def _usable(use_case: UseCase, path: str, unusable: Counter[str], left_out: Collection[str], setting: str) -> Iterator[pa.Table]:
    """Yield tables of documents with `text_hash` and their `place` in the draw; others are counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    seed, plain = use_case.settings.seed, DocumentsSettings(path=path)
    is_sft = use_case.settings.examples.task == "sft"
    ways: list[Way] = [*([(plain, "sft")] if is_sft else []), (plain, "language_modeling")]
    for _, table in read_external(path, use_case, ways, setting):
        has_text = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(table["text"]), ""), False)
        is_malformed = table["problem"].is_valid()
        unusable["malformed row"] += pc.sum(is_malformed).as_py() or 0
        unusable["empty text"] += pc.sum(pc.invert(pc.or_(has_text, is_malformed))).as_py() or 0
        table = table.filter(pc.and_not(has_text, is_malformed)).drop_columns(["problem"])
        hashes = [_content_hash(text, turns) for text, turns in zip(table["text"].to_pylist(), table["messages"].to_pylist(), strict=True)]
        places = [unit_hash(seed, "replay", hash_) for hash_ in hashes]
        table = table.append_column("text_hash", pa.array(hashes, pa.string())).append_column("place", pa.array(places, pa.float64()))
        yield table.filter(np.array([hash_ not in left_out for hash_ in hashes], bool)) if left_out else table


def _content_hash(text: str, turns: list[dict[str, str]] | None) -> str:
    return text_hash(text) if turns is None else messages_hash([(turn["role"], turn["content"]) for turn in turns])


def _num_characters(table: pa.Table) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.utf8_length(table["text"]).to_numpy().astype(np.int64)


def _first(tables: list[pa.Table], most: int | None) -> pa.Table:
    """Return the first documents in the order of the draw, each content once, up to the one that makes up `most` characters."""
    import pyarrow as pa

    table = pa.concat_tables(tables)
    table = table.sort_by([(name, "ascending") for name in ("place", "text_hash", "source", "row")])
    hashes = np.array(table["text_hash"].to_pylist(), object)
    table = table.filter(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(table) else table
    if most is None:
        return table
    return table.slice(0, int(np.searchsorted(np.cumsum(_num_characters(table)), most)) + 1)


def take_tokens(use_case: UseCase, candidates: Candidates, num_needed: int, screens: Sequence[_Screen | _Near]) -> Drawn:
    """Tokenise candidates one block after the other, until they have the tokens that are needed."""
    import pyarrow as pa

    table = candidates.table
    tokenizations = Tokenizations(use_case)
    drawn = Drawn(table.slice(0, 0), chunk_schema().empty_table(), 0, Counter(candidates.num_unusable), [0 for _ in screens])
    examples, chunks = [drawn.examples], [drawn.chunks]
    characters = np.cumsum(_num_characters(table))
    start = 0
    while start < len(table) and drawn.num_tokens < num_needed:
        before = characters[start - 1] if start else 0
        guess = min((num_needed - drawn.num_tokens) * _USUAL_CHARACTERS_A_TOKEN, _MAX_BLOCK_CHARACTERS)
        end = max(start + _MIN_BLOCK_ROWS, int(np.searchsorted(characters, before + guess)) + 1)
        block = table.slice(start, end - start)
        start = end
        masks = [screen.overlapping(block["text"]) for screen in screens]
        clean = np.flatnonzero(~np.logical_or.reduce([np.zeros(len(block), bool), *masks]))
        found = tokenizations.chunk(block.take(clean))
        fit = np.flatnonzero(_is_trained(found))
        tokens = np.cumsum(_num_tokens(found)[fit])
        last = int(np.searchsorted(tokens, num_needed - drawn.num_tokens))
        if last < len(fit):  # it is enough: what follows was never drawn
            fit = fit[: last + 1]
            looked_at = clean[fit[-1]] + 1
            found = _cut_last(found, fit[-1], int(tokens[last]) - (num_needed - drawn.num_tokens))
        else:
            looked_at = len(block)
        drawn.num_passed_over = [count + int(mask[:looked_at].sum()) for count, mask in zip(drawn.num_passed_over, masks, strict=True)]
        drawn.num_unusable += Counter({"no trained token": int((clean < looked_at).sum()) - len(fit)})
        examples.append(block.take(clean[fit]))
        chunks.append(found.take(fit))
        drawn.num_tokens += int(_num_tokens(chunks[-1]).sum())
    drawn.examples = pa.concat_tables(examples).drop_columns(["place"])
    drawn.chunks = pa.concat_tables(chunks)
    return drawn


def _num_tokens(chunks: pa.Table) -> np.ndarray:
    """Return the tokens of all windows of each row."""
    row, windows = _flat(chunks["windows"].combine_chunks())
    return np.bincount(row, _lengths(windows), len(chunks)).astype(np.int64)


def _is_trained(chunks: pa.Table) -> np.ndarray:
    """Return which rows have a token to learn from; without marks every token is one."""
    if chunks["marks"].null_count:
        return _num_tokens(chunks) > 0
    row, windows = _flat(chunks["marks"].combine_chunks())
    window, marks = _flat(windows)
    return np.bincount(row[window], np.asarray(marks) == 1, len(chunks)) > 0


def _flat(lists: pa.ListArray) -> tuple[np.ndarray, pa.Array]:
    """Return the list that each item is in, and the items."""
    import pyarrow.compute as pc

    return np.asarray(pc.list_parent_indices(lists)), lists.flatten()


def _lengths(lists: pa.ListArray) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(lists))


def _cut_last(chunks: pa.Table, row: int, num_spare: int) -> pa.Table:
    """Leave out the last windows of a row whose tokens are not needed."""
    import pyarrow as pa

    lengths = [len(window) for window in chunks["windows"][row].as_py()]
    num_kept = len(lengths)
    while num_kept > 1 and lengths[num_kept - 1] <= num_spare:
        num_kept -= 1
        num_spare -= lengths[num_kept]
    cut: dict[str, Any] = chunks.slice(row, 1).to_pylist()[0]
    for name in ("windows", "marks"):
        cut[name] = cut[name] and cut[name][:num_kept]
    return pa.concat_tables([chunks.slice(0, row), pa.Table.from_pylist([cut], schema=chunks.schema), chunks.slice(row + 1)])


class Tokenizations:
    """How documents become windows: conversations through the model's chat template; a plain text is trained whole."""

    def __init__(self, use_case: UseCase):
        self._settings = use_case.settings
        self._model = resolve_base_model(use_case.settings.base_model, use_case.project_root)

    @cached_property
    def _plain(self) -> Tokenization:
        return Tokenization.load(self._model, self._settings.chunks, self._plain_task)

    @property
    def _plain_task(self) -> Task:
        """An encoder reads general text as it reads its task's."""
        return "language_modeling" if self._settings.examples.task in ("sft", "language_modeling") else "classification"

    @cached_property
    def _conversations(self) -> Tokenization:
        return Tokenization.load(self._model, self._settings.chunks, "sft")

    def chunk(self, documents: pa.Table) -> pa.Table:
        """Return the windows of documents, as a batch's `chunks.parquet` has them."""
        import pyarrow as pa

        if self._settings.examples.task != "sft":
            return chunk(documents, self._plain, self._plain_task).table
        is_plain = np.asarray(documents["messages"].is_null())
        parts = []
        if not is_plain.all():
            parts.append(chunk(documents.filter(~is_plain), self._conversations, "sft").table)
        if is_plain.any():
            parts.append(_marked_whole(chunk(documents.filter(is_plain), self._plain, "language_modeling").table))
        if not parts:
            return chunk_schema().empty_table()
        back = np.empty(len(documents), np.int64)
        back[np.argsort(is_plain, kind="stable")] = np.arange(len(documents))
        return pa.concat_tables(parts).take(back)


def _marked_whole(chunks: pa.Table) -> pa.Table:
    """Return chunks with a mark on every token."""
    import pyarrow as pa

    windows = chunks["windows"].combine_chunks()
    tokens = np.concatenate([[0], np.cumsum(_lengths(windows.flatten()))]).astype(np.int32)
    rows = np.concatenate([[0], np.cumsum(_lengths(windows))]).astype(np.int32)
    marks = pa.ListArray.from_arrays(rows, pa.ListArray.from_arrays(tokens, pa.array(np.ones(tokens[-1], np.int32))))
    column = chunks.schema.get_field_index("marks")
    return chunks.set_column(column, chunks.schema.field(column), marks.cast(chunks.schema.field(column).type))
