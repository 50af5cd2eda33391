"""Whether the fields that a YAML names are there in a sample of the delivered rows; a wrong name is reported
with the nearest field of the rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fullft_assets.checking.corpus import Sampled
from fullft_assets.checking.yaml_source import Key
from fullft_assets.documents.formats.rows import has_field
from fullft_assets.escaping import quoted, visible
from fullft_assets.examples.outcomes import MEANT_WITHOUT, MOST_WITHOUT
from fullft_assets.settings import DocumentsSettings, LogSettings, UseCaseSettings
from fullft_assets.task import task_of

#: Objects within a record of an export whose fields count as the record's.
_NESTED = ("data", "meta", "metadata", "fields", "inputs")
#: Objects within objects whose fields are suggested.
_MOST_DEPTH = 5
_SHOWN_FIELDS, _SHOWN_PLACES = 20, 3
#: Characters of a field's name that are shown. A longer one is a text: the first row of a table that has no
#: header.
_SHOWN_CHARACTERS = 60
_NO_HEADER = "; if the first row is none of names, set documents.header to none"
_TABLES = {".csv", ".tsv", ".xlsx"}
_HEADER = "where a title is above the columns' names, give the number of their row as documents.header"


def field_problems(sample: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[Key, str]]:
    """Yield the keys whose field too few rows have for a batch to go on, each with one line that says what to
    do.
    """
    yield from _unusable(sample, settings.examples.max_quarantined_share)
    rows = [row for row in sample if row.record]
    if not rows:
        return
    for key, column, field in _named(settings, rows):
        rows_without = [row for row in rows if not _has(row, column)]
        if len(rows_without) == len(rows):
            yield key, _nowhere(field, column, rows)
            continue
        # The rule on groups is about valid rows.
        counted = (
            [row for row in rows_without if "problem" not in row.row and _has(row, "text")]
            if column == "group"
            else rows_without
        )
        most, limit, otherwise = _most_without(column, settings)
        if len(counted) > most * len(rows):
            near = _near(field, fields_of([row for row in counted if field not in fields_of([row])]))
            yield key, f"{_without(counted, rows, field)}, more than {limit}{near or otherwise}"


def log_problems(sample: list[Sampled], log: LogSettings) -> Iterator[tuple[Key, str]]:
    """Yield the keys of `monitoring.log` whose field nearly all production rows lack, each with one line that
    says what to do.
    """
    rows = [row for row in sample if row.record]
    columns = (
        ("prediction", "predicted"),
        ("score", "score"),
        ("model", "predicted_by"),
        ("time", "predicted_at"),
    )
    for key, column in columns if rows else ():
        field = getattr(log, key)
        rows_without = [row for row in rows if column not in row.row]
        if field is None or len(rows_without) <= MOST_WITHOUT * len(rows):
            continue
        if len(rows_without) == len(rows):
            yield ("monitoring", "log", key), _nowhere(field, column, rows)
        else:
            near = _near(field, fields_of([row for row in rows_without if field not in fields_of([row])]))
            yield (
                ("monitoring", "log", key),
                f"{_without(rows_without, rows, field)}{near or '; name a field that most rows have'}",
            )


def _unusable(sample: list[Sampled], most: float) -> Iterator[tuple[Key, str]]:
    """Yield a key if too many rows are no records, or name a text that may not be read or is not there."""
    rows = [row for row in sample if row.is_refused or not row.record]
    if len(rows) > most * len(sample):
        is_object = "://" in str(rows[0].record.get("source-ref"))
        problem = str(rows[0].row.get("problem"))
        hint = f"; {_HEADER}" if problem.endswith("fields than the header") else ""
        counted = f"{len(rows):,} of {len(sample):,} rows read ({_places(rows)})"
        yield ("documents", "reference_buckets" if is_object else "path"), f"{counted}: {problem}{hint}"


def _most_without(column: str, settings: UseCaseSettings) -> tuple[float, str, str]:
    """Return the share of rows that may lack a column, what it is called, and what to do where no field's
    name is near.
    """
    if column == "group":
        most = settings.examples.max_ungrouped_share
        return most, f"{most:.0%} of them", "; deliver them with a group"
    if column in MEANT_WITHOUT:
        return (
            MOST_WITHOUT,
            f"{MOST_WITHOUT:.0%} of them",
            "; name a field that most rows have, or remove the key",
        )
    most = settings.examples.max_quarantined_share
    return (
        most,
        f"examples.max_quarantined_share ({most:g})",
        "; name the field that the others have, or fix them in the source",
    )


def _without(rows_without: list[Sampled], rows: list[Sampled], field: str) -> str:
    return f"{len(rows_without):,} of {len(rows):,} rows read have no `{field}` ({_places(rows_without)})"


def _places(rows: list[Sampled]) -> str:
    return ", ".join(one.place for one in rows[:_SHOWN_PLACES])


def fields_of(sample: list[Sampled]) -> list[str]:
    """Return the names of the fields that rows have, those of nested objects and of the controls of an export
    too, as they come.
    """
    names: dict[str, None] = {}
    for row in sample:
        names.update(dict.fromkeys(flat(row)))
        names.update(dict.fromkeys(_controls(row.record)))
    return [name for name in names if name]


def flat(row: Sampled) -> dict[str, Any]:
    """Return the fields of a record by the names that settings may give them: those inside of another by
    their paths.

    Those of the objects that an export nests them in have no path.
    """
    if row.is_plain:
        return dict(_paths(row.record)) | row.record
    fields = dict(row.record)
    for name in _NESTED:
        nested = row.record.get(name)
        fields |= nested if isinstance(nested, dict) else {}
    return fields


def _paths(record: dict[str, Any], above: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        yield f"{above}{name}", value
        if isinstance(value, dict) and depth < _MOST_DEPTH:
            yield from _paths(value, f"{above}{name}.", depth + 1)


def _controls(record: dict[str, Any]) -> Iterator[str]:
    """Yield the names of the controls of a task of Label Studio."""
    annotations = record.get("annotations")
    for annotation in annotations if isinstance(annotations, list) else []:
        regions = annotation.get("result") if isinstance(annotation, dict) else None
        for region in regions if isinstance(regions, list) else []:
            if isinstance(region, dict) and isinstance(region.get("from_name"), str):
                yield region["from_name"]


def _named(settings: UseCaseSettings, rows: list[Sampled]) -> Iterator[tuple[Key, str, str]]:
    """Yield (key, column, field) of each field that must be there."""
    documents = settings.documents
    examples = settings.examples
    task = task_of(settings.examples)
    if not any(row.is_elsewhere for row in rows):
        yield ("documents", "text"), "text", rows[0].text_field
    if documents.id != DocumentsSettings.model_fields["id"].default:
        yield ("documents", "id"), "id", documents.id
    if task.has_labels and examples.label is not None:
        yield ("examples", "label"), task.target or "label", examples.label
    for column, field in (
        ("group", examples.group),
        ("domain", examples.domain),
        ("slice_by", examples.slice_by),
    ):
        if field is not None:
            yield ("examples", column), column, field


def _has(row: Sampled, column: str) -> bool:
    if column == "text":
        return bool(row.row.get("text", "").strip())
    # A label that is malformed is there.
    return column in row.row or (
        column in ("label", "labels", "spans") and "problem" in row.row and bool(row.row.get("text"))
    )


def _nowhere(field: str, column: str, rows: list[Sampled]) -> str:
    problem, field_names = rows[0].row.get("problem"), fields_of(rows)
    if column == "text" and problem not in (None, f"no field `{field}`"):
        hint = (
            f"{_listed(field_names)}; set documents.text to the one that has it"
            if str(problem).startswith("no field ")
            else ""
        )
        return f"none of {len(rows):,} rows read can be used; the first ({rows[0].place}): {problem}{hint}"
    if field in field_names or any(has_field(row.record, field) for row in rows):
        return (
            f"`{field}` is empty in each of {len(rows):,} rows"
            f" read{_near(field, [name for name in field_names if name != field])}"
        )
    return (
        f"none of {len(rows):,} rows read has a"
        f" `{field}`{_near(field, field_names) or _listed(field_names) + _title_hint(rows[0])}"
    )


def _title_hint(row: Sampled) -> str:
    """Return what to do where the names of a table's columns look like a title, which has cells without a
    name beside it, or is alone.
    """
    is_table = not _TABLES.isdisjoint(Path(row.place.rpartition(":")[0].lower()).suffixes)
    names = row.record.keys() - {"sheet"}
    return f"; {_HEADER}" if is_table and ("" in names or len(names) == 1) else ""


def _near(field: str, fields: list[str]) -> str:
    # Also by the end of a path alone.
    by_case = {name.rpartition(".")[2].strip().casefold(): name for name in reversed(fields)}
    by_case |= {name.strip().casefold(): name for name in reversed(fields)}
    near = difflib.get_close_matches(field.strip().casefold(), by_case, n=1, cutoff=0.5)
    return f"; did you mean {quoted(by_case[near[0]])}?" if near else ""


def _listed(fields: list[str]) -> str:
    more = f" and {len(fields) - _SHOWN_FIELDS:,} more" if len(fields) > _SHOWN_FIELDS else ""
    shown = [
        visible(name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}...")
        for name in fields[:_SHOWN_FIELDS]
    ]
    hint = _NO_HEADER if any(len(name) > _SHOWN_CHARACTERS for name in fields) else ""
    return f"; their fields: {', '.join(shown)}{more}{hint}"
