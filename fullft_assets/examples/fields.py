"""Gates on the fields that the settings name for what ties rows together: a wrong name would leave each row
by itself, unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.examples.outcomes import places
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.store import CheckOutcome

if TYPE_CHECKING:
    import pyarrow as pa

#: A named field of ids, domains or slices that a larger share of rows lacks is taken for a wrong name.
MOST_WITHOUT = 0.9
#: What a row is without an id, a domain or a value to slice by.
MEANT_WITHOUT = {
    "id": "each is called by its file and row, so a corrected delivery of it is another document",
    "domain": "no slice of the evaluation has them",
    "slice_by": "no slice of this field has them",
}
_LOOK = "`fullft check` lists the fields that rows have"


def field_outcomes(
    documents: pa.Table, valid: pa.Table, settings: ExamplesSettings, id_field: str
) -> list[CheckOutcome]:
    """Return whether the fields that are named for ids, groups, domains and slices have values, in all rows,
    and whether enough have a group.

    Args:
        documents: the rows of a batch that are not malformed, the quarantined ones too.
        valid: its valid rows, which alone can be split wrongly.
        settings: they name the fields.
        id_field: `documents.id`; its default need not exist.
    """
    named = {"documents.id": None if id_field == DocumentsSettings.model_fields["id"].default else id_field}
    named |= {
        "examples.group": settings.group,
        "examples.domain": settings.domain,
        "examples.slice_by": settings.slice_by,
    }
    missing = {"documents.id": _has_made_up_id(documents)}
    missing |= {
        f"examples.{column}": _is_null(documents, column) for column in ("group", "domain", "slice_by")
    }
    of_field = [_Named(key, field, missing[key]) for key, field in named.items() if field is not None]
    group_outcomes = [] if settings.group is None else [_given(valid, settings)]
    return [_found(documents, of_field), *group_outcomes, _complete(documents, of_field)]


@dataclass(frozen=True, eq=False)
class _Named:
    """A field that a key names, and which rows (bool) have no value in it."""

    key: str
    field: str
    missing: np.ndarray

    @property
    def column(self) -> str:
        return self.key.partition(".")[2]

    @property
    def is_absent(self) -> bool:
        """Whether it is taken for a wrong name; how many rows may have no group is a setting, which another
        gate is about.
        """
        most = MOST_WITHOUT if self.column in MEANT_WITHOUT else 1
        return bool(len(self.missing)) and (bool(self.missing.all()) or bool(self.missing.mean() > most))


def _found(documents: pa.Table, named: list[_Named]) -> CheckOutcome:
    absent = [
        f"{each.key} names `{each.field}`, in which {_count_with(each.missing, len(documents))} a value"
        for each in named
        if each.is_absent
    ]
    return CheckOutcome(
        name="named_fields_have_values",
        passed=not absent,
        description=f"{' and '.join(absent)}; {_LOOK}: name one of them, or remove the key" if absent else "",
        metadata={f"num_without_{each.column}": int(each.missing.sum()) for each in named},
    )


def _count_with(missing: np.ndarray, num_rows: int) -> str:
    number = num_rows - int(missing.sum())
    return (
        f"{number or 'none':{',' if number else ''}} of the {num_rows:,} rows ha{'ve' if number > 1 else 's'}"
    )


def _complete(documents: pa.Table, named: list[_Named]) -> CheckOutcome:
    gaps = {each: np.flatnonzero(each.missing).tolist() for each in named if each.column in MEANT_WITHOUT}
    parts = [
        f"{len(rows):,} of {len(documents):,} rows have no `{each.field}` ({places(rows, documents)}):"
        f" {MEANT_WITHOUT[each.column]}"
        for each, rows in gaps.items()
        if rows
    ]
    return CheckOutcome(
        name="named_fields_are_complete",
        passed=not parts,
        severity="warn",
        description=f"{'; '.join(parts)}. {_LOOK}" if parts else "",
        metadata={"num_incomplete_fields": len(parts)},
    )


def _given(valid: pa.Table, settings: ExamplesSettings) -> CheckOutcome:
    missing = np.flatnonzero(_is_null(valid, "group"))
    share = len(missing) / max(1, len(valid))
    passed = share <= settings.max_ungrouped_share
    description = ""
    if len(missing):
        description = (
            f"{len(missing):,} of {len(valid):,} valid rows have no `{settings.group}`, so each is a group of"
            f" its own and may be tested on what its relatives trained: {places(missing.tolist(), valid)}"
        )
        description += "" if passed else f"; deliver them with a group. {_LOOK}"
    return CheckOutcome(
        name="groups_are_given",
        passed=passed,
        description=description,
        metadata={"num_without_group": len(missing), "ungrouped_share": round(share, 6)},
    )


def _is_null(documents: pa.Table, column: str) -> np.ndarray:
    return np.asarray(documents[column].is_null())


def _has_made_up_id(documents: pa.Table) -> np.ndarray:
    from fullft_assets.documents.erasure import has_made_up_id

    return has_made_up_id(documents)
