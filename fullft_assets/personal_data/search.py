"""Personal data in texts: found, counted and replaced by placeholders.

Each kind has a coarse hint that RE2 tries on a whole column, an exact pattern that is only tried where the
hint holds, and a check that a pattern cannot express: check digits, a country's numbering plan, numbers that
are never given out, addresses that are no one's. Names, places and dates are found where a model is given,
postal addresses are not. `benchmarks/personal_data.py` measures recall and precision of each kind. Masking
replaces the turns of a conversation as well, and moves the borders of spans along.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fullft_assets.conversations import Message, text_of, with_texts
from fullft_assets.personal_data.contacts import CONTACTS, SECRETS, TELEPHONES
from fullft_assets.personal_data.entities import EntityModel, entity_model
from fullft_assets.personal_data.identifiers import IDENTIFIERS
from fullft_assets.personal_data.kinds import Found, Kind, Span
from fullft_assets.settings.use_case import UseCase

#: In the order of precedence: a card number is not also a telephone number.
KINDS = (*SECRETS, *CONTACTS, *IDENTIFIERS, *TELEPHONES)


def kinds_named(names: Collection[str]) -> tuple[Kind, ...]:
    """Return the patterns of some kinds, as `examples.pii_kinds` names them, in the order of precedence."""
    return tuple(kind for kind in KINDS if kind.name in names)


def counts_of(pieces_by_row: Mapping[int, Sequence[Found]], num_rows: int) -> np.ndarray:
    """Return how many pieces of personal data each of the rows holds."""
    counts = np.zeros(num_rows, np.int32)
    for row, pieces in pieces_by_row.items():
        counts[row] = len(pieces)
    return counts


def find_all(texts: pa.Array | pa.ChunkedArray, kinds: Sequence[Kind]) -> dict[int, list[Found]]:
    """Return the personal data (of some kinds) in each text where a kind's hint matches, as `find` does, by
    row.
    """
    hinted: dict[int, set[str]] = {}
    for hint in dict.fromkeys(kind.hint for kind in kinds):
        for row in np.flatnonzero(pc.fill_null(pc.match_substring_regex(texts, hint), False)).tolist():
            hinted.setdefault(row, set()).add(hint)
    return {
        row: find(texts[row].as_py(), [kind for kind in kinds if kind.hint in hints])
        for row, hints in hinted.items()
    }


def find(text: str, kinds: Sequence[Kind] = KINDS) -> list[Found]:
    """Return the personal data (of some kinds) in a text, in order and without overlaps; of two kinds the
    stricter one wins.
    """
    all_pieces: list[Found] = []
    is_taken = bytearray(len(text))
    for kind in kinds:
        for match in kind.pattern.finditer(text):
            if (span := kind.check(match)) is not None and is_taken.find(1, *span) < 0:
                is_taken[span[0] : span[1]] = b"\1" * (span[1] - span[0])
                all_pieces.append(Found(*span, kind.placeholder, kind.name))
    return sorted(all_pieces, key=lambda piece: piece.start)


def mask(text: str, pieces: Sequence[Found]) -> str:
    """Return the text with each piece of personal data replaced by its placeholder."""
    parts: list[str] = []
    position = 0
    for piece in pieces:
        parts += [text[position : piece.start], piece.placeholder]
        position = piece.end
    return "".join([*parts, text[position:]])


def shift(start: int, end: int, pieces: Sequence[Found]) -> Span:
    """Return where characters `start` to `end` of a text are once it is masked.

    A border inside personal data moves to the border of the placeholder, so that a span over a whole or half
    e-mail address is a span over `[EMAIL]`.
    """
    return _shifted(start, pieces, is_end=False), _shifted(end, pieces, is_end=True)


def _shifted(position: int, pieces: Sequence[Found], *, is_end: bool) -> int:
    offset = 0
    for piece in pieces:
        if position >= piece.end:
            offset += len(piece.placeholder) - (piece.end - piece.start)
        elif position > piece.start:
            return piece.start + offset + (len(piece.placeholder) if is_end else 0)
    return position + offset


@dataclass(frozen=True)
class PersonalDataSearch:
    """What is looked for: by patterns, and by a model of named entities where there is one."""

    kinds: tuple[Kind, ...] = KINDS
    model: EntityModel | None = None

    def find_all(self, texts: pa.Array | pa.ChunkedArray) -> dict[int, list[Found]]:
        """Return the pieces of personal data in each text, by row; rows without any are left out."""
        pieces_by_row = find_all(texts, self.kinds)
        if self.model is not None:
            strings = texts.to_pylist()
            rows = [row for row, text in enumerate(strings) if text]
            for row, entities in zip(rows, self.model.find_all([strings[row] for row in rows]), strict=True):
                if entities:
                    pieces_by_row[row] = _joined(strings[row], pieces_by_row.get(row, []), entities)
        return {row: pieces for row, pieces in pieces_by_row.items() if pieces}

    def find_in(self, documents: pa.Table) -> dict[int, list[Found]]:
        """Return the pieces of personal data in each document with `text` and `messages`; of a conversation
        with declared tools they are places in its text with those.
        """
        if (messages := documents["messages"]).null_count == len(documents):
            return self.find_all(documents["text"])
        texts = [
            text if turns is None else text_of(turns, has_tools=True)
            for text, turns in zip(documents["text"].to_pylist(), messages.to_pylist(), strict=True)
        ]
        return self.find_all(pa.array(texts, pa.string()))


def search_of(use_case: UseCase) -> PersonalDataSearch:
    """Return the search for personal data that a use case's settings ask for.

    Raises:
        SettingsError: see `find_pipeline`.
    """
    return PersonalDataSearch(kinds_named(use_case.settings.examples.pii_kinds), entity_model(use_case))


def _joined(text: str, pieces: Sequence[Found], entities: Sequence[Found]) -> list[Found]:
    is_free = bytearray(b"\1" * len(text))
    all_pieces = [*pieces]
    for piece in pieces:
        is_free[piece.start : piece.end] = b"\0" * (piece.end - piece.start)
    for entity in entities:
        for run in re.finditer(b"\1+", is_free[entity.start : entity.end]):
            part = text[entity.start + run.start() : entity.start + run.end()]
            start = entity.start + run.start() + len(part) - len(part.lstrip())
            if any(map(str.isalnum, part)):
                all_pieces.append(replace(entity, start=start, end=start + len(part.strip())))
    return sorted(all_pieces, key=lambda piece: piece.start)


_COLUMNS = ("text", "messages", "spans", "annotations")


def mask_documents(table: pa.Table, pieces_by_row: Mapping[int, Sequence[Found]]) -> pa.Table:
    """Return the documents with their personal data masked; a row without any is untouched.

    Args:
        table: with `examples.identity.COLUMNS`.
        pieces_by_row: personal data in them by their row, as `PersonalDataSearch.find_in` finds it.
    """
    if not len(rows := np.array(sorted(pieces_by_row), np.int64)):
        return table
    masked_rows = [
        _mask_row(row, pieces_by_row[number])
        for number, row in zip(rows.tolist(), table.select(_COLUMNS).take(rows).to_pylist(), strict=True)
    ]
    for name in _COLUMNS:
        table = _with_values(table, name, rows, [row[name] for row in masked_rows])
    return table


def _mask_row(row: dict[str, Any], pieces: Sequence[Found]) -> dict[str, Any]:
    if row["messages"] is not None:
        messages = _mask_messages(row["messages"], pieces)
        return {**row, "messages": messages, "text": text_of(messages)}
    masked = {**row, "text": mask(row["text"], pieces)}
    if row["spans"] is not None:
        masked["spans"] = [_shifted_span(span, pieces) for span in row["spans"]]
        for annotation in row["annotations"] or []:
            spans = [_shifted_span(span, pieces) for span in json.loads(annotation["label"])]
            annotation["label"] = json.dumps(spans, ensure_ascii=False)
    return masked


def _mask_messages(messages: Sequence[Message], pieces: Sequence[Found]) -> list[dict[str, Any]]:
    end = -2  # nothing is before the first message

    def masked(before: str, text: str) -> str:
        nonlocal end
        start = end + len(before)
        end = start + len(text)
        inside = [
            replace(piece, start=max(piece.start, start) - start, end=min(piece.end, end) - start)
            for piece in pieces
            if piece.start < end and start < piece.end
        ]
        return mask(text, inside)

    return with_texts(messages, masked)


def _shifted_span(span: dict[str, Any], pieces: Sequence[Found]) -> dict[str, Any]:
    if span["start"] is None or span["end"] is None:
        return span
    start, end = shift(span["start"], span["end"], pieces)
    return {**span, "start": start, "end": end}


def _with_values(table: pa.Table, name: str, rows: np.ndarray, values: list[Any]) -> pa.Table:
    column = table[name]
    order = np.arange(len(table))
    order[rows] = len(table) + np.arange(len(rows))
    new_column = pa.chunked_array([*column.chunks, pa.array(values, column.type)]).take(pa.array(order))
    return table.set_column(table.schema.get_field_index(name), name, new_column)
