"""The personal data of texts, found by patterns and by a model of named entities together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fullft_assets.personal_data.entities import EntityModel, entity_model
from fullft_assets.personal_data.kinds import Found, Kind
from fullft_assets.personal_data.pii import KINDS, find_all, kinds_named
from fullft_assets.settings.use_case import UseCase

if TYPE_CHECKING:
    import pyarrow as pa


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
        return {row: each for row, each in pieces_by_row.items() if each}


def search_of(use_case: UseCase) -> PersonalDataSearch:
    """Return the search for personal data that a use case's settings ask for.

    Raises:
        SettingsError: see `find_pipeline`.
    """
    return PersonalDataSearch(kinds_named(use_case.settings.examples.pii_kinds), entity_model(use_case))


def _joined(text: str, pieces: Sequence[Found], entities: Sequence[Found]) -> list[Found]:
    """Return both without overlaps. What a pattern found stays whole: of a name that runs into an address,
    the rest is a piece.
    """
    free, parts = bytearray(b"\1" * len(text)), [*pieces]
    for one in pieces:
        free[one.start : one.end] = b"\0" * (one.end - one.start)
    for one in entities:
        for run in re.finditer(b"\1+", free[one.start : one.end]):
            part = text[one.start + run.start() : one.start + run.end()]
            start = one.start + run.start() + len(part) - len(part.lstrip())
            if any(map(str.isalnum, part)):
                parts.append(replace(one, start=start, end=start + len(part.strip())))
    return sorted(parts, key=lambda one: one.start)
