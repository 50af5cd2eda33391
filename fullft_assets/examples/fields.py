"""Gates on the fields that the settings name for what ties rows together: a wrong name would leave each row by itself, unnoticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fullft_assets.examples.outcomes import places
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.store import CheckOutcome

if TYPE_CHECKING:
    import pyarrow as pa

_LOOK = "`fullft check` lists the fields that rows have"


def field_outcomes(documents: pa.Table, valid: pa.Table, settings: ExamplesSettings, id_field: str) -> list[CheckOutcome]:
    """Return whether each field that is named for ids, groups and domains has values, and whether enough rows have a group.

    Args:
        documents: all rows of a batch, the quarantined ones too.
        valid: its valid rows, which alone can be split wrongly.
        settings: they name the fields.
        id_field: `documents.id`; its default need not exist.
    """
    outcomes = [_found(documents, settings, id_field)]
    if settings.group is not None:
        outcomes.append(_given(valid, settings))
    return outcomes


def _found(documents: pa.Table, settings: ExamplesSettings, id_field: str) -> CheckOutcome:
    named = {"documents.id": None if id_field == DocumentsSettings.model_fields["id"].default else id_field}
    named |= {
        "examples.group": settings.group if settings.max_ungrouped_share < 1 else None,
        "examples.domain": settings.domain,
        "examples.slice_by": settings.slice_by,
    }
    missing = {"documents.id": _has_made_up_id(documents)}
    missing |= {f"examples.{column}": _is_null(documents, column) for column in ("group", "domain", "slice_by")}
    absent = [f"{key} names `{field}`" for key, field in named.items() if field is not None and len(documents) and missing[key].all()]
    return CheckOutcome(
        name="named_fields_have_values",
        passed=not absent,
        description=f"{' and '.join(absent)}, in which none of the {len(documents):,} rows has a value; {_LOOK}: name one of them, or remove the "
        "key"
        if absent
        else "",
        metadata={f"num_without_{key.partition('.')[2]}": int(missing[key].sum()) for key, field in named.items() if field is not None},
    )


def _given(valid: pa.Table, settings: ExamplesSettings) -> CheckOutcome:
    missing = np.flatnonzero(_is_null(valid, "group"))
    share = len(missing) / max(1, len(valid))
    passed = share <= settings.max_ungrouped_share
    description = ""
    if len(missing):
        description = (
            f"{len(missing):,} of {len(valid):,} valid rows have no `{settings.group}`, so each is a group of its own and may be tested on "
            f"what its relatives trained: {places(missing.tolist(), valid)}"
        )
        fix = f"; deliver them with a group, or allow more by examples.max_ungrouped_share ({settings.max_ungrouped_share:g}). {_LOOK}"
        description += "" if passed else fix
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
