"""General documents drawn up to a number of tokens: what replay and the general set share.

Which documents is a keyed hash of their contents: the choice depends neither on the order of the files nor on
what else is there, and more tokens take the same documents and more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fullft_assets.base_model import resolve_base_model
from fullft_assets.chunks import Tokenization, chunk, tokenizer_digest
from fullft_assets.chunks import key_settings as chunk_settings
from fullft_assets.chunks import schema as chunk_schema
from fullft_assets.documents.erasure import is_erased
from fullft_assets.settings import DocumentsSettings
from fullft_assets.snapshot.screening import Way, locate, read_external
from fullft_assets.store import Draft, Identity
from fullft_assets.store.hashing import messages_hash, text_hash, unit_hash
from fullft_assets.task import CONVERSATIONS, PLAIN_TEXT, task_of

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.settings.use_case import UseCase

#: Characters of candidates kept for each token that is wanted: twice what usual texts have. Where they do not
#: suffice, more are read.
_CHARACTERS_A_TOKEN = 8
_MORE = 8
#: Documents that are looked at together: as many as are guessed to be needed, within bounds.
_USUAL_CHARACTERS_A_TOKEN = 4
_MIN_BLOCK_ROWS = 64
_MAX_BLOCK_CHARACTERS = 1 << 23


class KeepsOut(Protocol):
    """What keeps documents out."""

    def overlapping(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Return for each text whether it must not be drawn."""
        ...


@dataclass
class Drawn:
    """Documents in the order of the draw, with the columns of a batch's artifacts.

    Attributes:
        num_candidates: usable documents that were looked at.
        num_unusable: reason -> rows.
        num_passed_over: documents that a screen kept out, by screen.
        num_with_control_tokens: documents that spell out a special token of the model.
    """

    examples: pa.Table
    chunks: pa.Table
    num_tokens: int
    num_candidates: int
    num_unusable: Counter[str]
    num_passed_over: list[int]
    num_with_control_tokens: int

    def write(self, draft: Draft, made_with: dict[str, Any]) -> dict[str, Any]:
        """Write both tables as an artifact, and return their metadata.

        Args:
            draft: of the artifact.
            made_with: see `made_with`.
        """
        import pyarrow.parquet as pq

        pq.write_table(self.examples, draft.path / "examples.parquet", compression="zstd")
        pq.write_table(self.chunks, draft.path / "chunks.parquet", compression="zstd")
        # Not of the files: they hold from where, and when, documents were delivered.
        documents = self.examples["text_hash"].to_pylist()
        draft.identity = Identity(
            files=[], values={"documents": documents, "num_tokens": self.num_tokens, **made_with}
        )
        counts = {
            "num_rows": len(self.examples),
            "num_tokens": self.num_tokens,
            "num_with_control_tokens": self.num_with_control_tokens,
        }
        return {**counts, "num_unusable": self.num_unusable}


def made_with(use_case: UseCase) -> dict[str, Any]:
    """Return what windows of general documents are made with: the settings `chunks`, and the digest of the
    `tokenizer`.
    """
    settings = use_case.settings
    base_model = resolve_base_model(settings.base_model, use_case.project_root)
    return {
        "chunks": chunk_settings(settings),
        "tokenizer": tokenizer_digest(base_model, settings.chunks, settings.examples.task),
    }


def pin_files(path: str, use_case: UseCase, setting: str) -> dict[str, str]:
    """Return the digest of each file of a path: what pins its documents, without reading their rows.

    Raises:
        DataError: the path is not there, or holds no file that can be read; `setting` is named.
    """
    source, files = locate(path, use_case, setting)
    return {file.path: source.digest(file) for file in files}


def draw_tokens(
    use_case: UseCase,
    path: str,
    num_needed: int,
    setting: str,
    left_out: Collection[str] = (),
    screens: Sequence[KeepsOut] = (),
    tombstones: Collection[str] = (),
) -> Drawn:
    """Draw documents until they have the tokens that are needed, or there are no others.

    Args:
        use_case: where relative paths start; the task, the tokenizer and the seed.
        path: of the documents.
        num_needed: tokens.
        setting: named in messages.
        left_out: content hashes of documents that are none of them.
        screens: what else keeps documents out.
        tombstones: of erased documents, which are none of them either (see `documents.erasure`).

    Raises:
        DataError: the path is not there, or a file of it cannot be read.
    """
    most = num_needed * _CHARACTERS_A_TOKEN
    while True:
        candidates = Candidates.read(use_case, path, most, left_out, setting, tombstones)
        drawn = take_tokens(use_case, candidates, num_needed, screens)
        if drawn.num_tokens >= num_needed or candidates.is_all:
            return drawn
        most *= _MORE


@dataclass(frozen=True)
class Candidates:
    """The documents that come first in the draw, in its order, each content once; `is_all`: there are no
    others.
    """

    table: pa.Table
    is_all: bool
    num_unusable: Counter[str]

    @classmethod
    def read(
        cls,
        use_case: UseCase,
        path: str,
        most: int,
        left_out: Collection[str],
        setting: str,
        tombstones: Collection[str] = (),
    ) -> Candidates:
        """Read every document and keep the first ones, of at least `most` characters together; at most some
        times as many are held.

        Args:
            use_case: where relative paths start; the task and the seed.
            path: of the documents.
            most: characters.
            left_out: content hashes of documents that are none of them.
            setting: named in messages.
            tombstones: of erased documents.
        """
        unusable: Counter[str] = Counter()
        tables: list[pa.Table] = []
        held = 0
        last = 1.0
        is_all = True
        for table in _usable(use_case, path, unusable, left_out, setting, tombstones):
            early = table.filter(np.asarray(table["place"]) <= last)
            is_all &= len(early) == len(table)
            tables.append(early)
            held += _num_characters(early).sum()
            if held > 2 * most:
                first = _first(tables, most)
                is_all &= len(first) == sum(map(len, tables))
                tables = [first]
                held = _num_characters(first).sum()
                last = first["place"][-1].as_py()
        return cls(_first(tables, None), is_all, +unusable)


def _usable(
    use_case: UseCase,
    path: str,
    unusable: Counter[str],
    left_out: Collection[str],
    setting: str,
    tombstones: Collection[str],
) -> Iterator[pa.Table]:
    """Yield tables of documents with `text_hash` and their `place` in the draw; others are counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    seed, plain = use_case.settings.seed, DocumentsSettings.model_validate({"path": path})
    has_messages = task_of(use_case.settings.examples).has_messages
    ways: list[Way] = [*([(plain, CONVERSATIONS)] if has_messages else []), (plain, PLAIN_TEXT)]
    for _, table in read_external(path, use_case, ways, setting):
        has_text = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(table["text"]), ""), False)
        is_malformed = table["problem"].is_valid()
        unusable["malformed row"] += pc.sum(is_malformed).as_py() or 0
        unusable["empty text"] += pc.sum(pc.invert(pc.or_(has_text, is_malformed))).as_py() or 0
        table = table.filter(pc.and_not(has_text, is_malformed)).drop_columns(["problem"])
        hashes = [
            _content_hash(text, turns)
            for text, turns in zip(table["text"].to_pylist(), table["messages"].to_pylist(), strict=True)
        ]
        places = [unit_hash(seed, "replay", hash_) for hash_ in hashes]
        table = table.append_column("text_hash", pa.array(hashes, pa.string())).append_column(
            "place", pa.array(places, pa.float64())
        )
        is_out = is_erased(use_case.name, table, tombstones)
        unusable["erased"] += int(is_out.sum())
        if left_out:
            is_out |= np.array([hash_ in left_out for hash_ in hashes], bool)
        yield table.filter(pa.array(~is_out)) if is_out.any() else table


def _content_hash(text: str, turns: list[dict[str, str]] | None) -> str:
    return (
        text_hash(text)
        if turns is None
        else messages_hash([(turn["role"], turn["content"]) for turn in turns])
    )


def _num_characters(table: pa.Table) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.utf8_length(table["text"]).to_numpy().astype(np.int64)


def _first(tables: list[pa.Table], most: int | None) -> pa.Table:
    """Return the first documents in the order of the draw, each content once, up to the one that makes up
    `most` characters.
    """
    import pyarrow as pa

    table = pa.concat_tables(tables)
    table = table.sort_by([(name, "ascending") for name in ("place", "text_hash", "source", "row")])
    hashes = np.array(table["text_hash"].to_pylist(), object)
    table = table.filter(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(table) else table
    if most is None:
        return table
    return table.slice(0, int(np.searchsorted(np.cumsum(_num_characters(table)), most)) + 1)


def take_tokens(
    use_case: UseCase, candidates: Candidates, num_needed: int, screens: Sequence[KeepsOut]
) -> Drawn:
    """Tokenise candidates one block after the other, until they have the tokens that are needed."""
    import pyarrow as pa

    table, tokenizations = candidates.table, Tokenizations(use_case)
    num_unusable, num_passed_over = Counter(candidates.num_unusable), [0 for _ in screens]
    examples, chunks = [table.slice(0, 0)], [chunk_schema().empty_table()]
    characters = np.cumsum(_num_characters(table))
    start, missing = 0, num_needed
    while start < len(table) and missing > 0:
        end = _end_of_block(characters, start, missing)
        block, start = table.slice(start, end - start), end
        masks = [screen.overlapping(block["text"]) for screen in screens]
        clean = np.flatnonzero(~np.logical_or.reduce([np.zeros(len(block), bool), *masks]))
        fit, windows, is_enough = _first_tokens(tokenizations.chunk(block.take(clean)), missing)
        # What follows the last one was never drawn.
        looked_at = clean[fit[-1]] + 1 if is_enough else len(block)
        num_passed_over = [
            count + int(mask[:looked_at].sum()) for count, mask in zip(num_passed_over, masks, strict=True)
        ]
        num_unusable += Counter({"no trained token": int((clean < looked_at).sum()) - len(fit)})
        examples.append(block.take(clean[fit]))
        chunks.append(windows)
        missing -= int(_num_tokens(windows).sum())
    drawn = pa.concat_tables(examples).drop_columns(["place"])
    num_controls = sum(map(tokenizations.holds_control_token, drawn["text"].to_pylist()))
    return Drawn(
        drawn,
        pa.concat_tables(chunks),
        num_needed - missing,
        len(table),
        num_unusable,
        num_passed_over,
        num_controls,
    )


def _end_of_block(characters: np.ndarray, start: int, missing: int) -> int:
    """Return where the documents end that are looked at together, by the summed characters up to each."""
    before = characters[start - 1] if start else 0
    guess = min(missing * _USUAL_CHARACTERS_A_TOKEN, _MAX_BLOCK_CHARACTERS)
    return max(start + _MIN_BLOCK_ROWS, int(np.searchsorted(characters, before + guess)) + 1)


def _first_tokens(chunks: pa.Table, missing: int) -> tuple[np.ndarray, pa.Table, bool]:
    """Return the first rows with a token to learn from, with their windows, that have the missing tokens, and
    whether they do.
    """
    fit = np.flatnonzero(_is_trained(chunks))
    tokens = np.cumsum(_num_tokens(chunks)[fit])
    last = int(np.searchsorted(tokens, missing))
    if last == len(fit):
        return fit, chunks.take(fit), False
    fit = fit[: last + 1]
    return fit, _cut_last(chunks, fit[-1], int(tokens[last]) - missing).take(fit), True


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
    return pa.concat_tables(
        [chunks.slice(0, row), pa.Table.from_pylist([cut], schema=chunks.schema), chunks.slice(row + 1)]
    )


class Tokenizations:
    """How documents become windows: conversations through the model's chat template; a plain text is trained
    whole.
    """

    def __init__(self, use_case: UseCase):
        self._settings = use_case.settings
        self._model = resolve_base_model(use_case.settings.base_model, use_case.project_root)

    @cached_property
    def _plain(self) -> Tokenization:
        return Tokenization.load(self._model, self._settings.chunks, self._plain_task)

    @property
    def _plain_task(self) -> str:
        """Name of the task whose tokenization reads plain general text."""
        return task_of(self._settings.examples).plain_task

    @cached_property
    def _conversations(self) -> Tokenization:
        return Tokenization.load(self._model, self._settings.chunks, self._settings.examples.task)

    def holds_control_token(self, text: str) -> bool:
        """Return whether a document spells out a special token, which the model reads as that token."""
        tokenization = self._conversations if task_of(self._settings.examples).has_messages else self._plain
        return tokenization.holds_control_token(text)

    def chunk(self, documents: pa.Table) -> pa.Table:
        """Return the windows of documents, as a batch's `chunks.parquet` has them."""
        import pyarrow as pa

        if not task_of(self._settings.examples).has_messages:
            return chunk(documents, self._plain, self._plain_task).table
        is_plain = np.asarray(documents["messages"].is_null())
        parts = []
        if not is_plain.all():
            parts.append(
                chunk(documents.filter(~is_plain), self._conversations, self._settings.examples.task).table
            )
        if is_plain.any():
            parts.append(
                _marked_whole(chunk(documents.filter(is_plain), self._plain, self._plain_task).table)
            )
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
    marks = pa.ListArray.from_arrays(
        rows, pa.ListArray.from_arrays(tokens, pa.array(np.ones(tokens[-1], np.int32)))
    )
    column = chunks.schema.get_field_index("marks")
    return chunks.set_column(
        column, chunks.schema.field(column), marks.cast(chunks.schema.field(column).type)
    )
