"""fields: whether the fields that a YAML names are there, in a sample of the delivered rows, with the near ones among those that are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from fullft_assets.config.corpus import Sampled
from fullft_assets.config.yaml_source import Key
from fullft_assets.documents.formats.rows import has_field
from fullft_assets.settings import DocumentsSettings, UseCaseSettings
from fullft_assets.task import task_of

#: Objects within a record of an export whose fields count as the record's.
_NESTED = ("data", "meta", "metadata", "fields", "inputs")
_SHOWN_FIELDS, _SHOWN_PLACES = 20, 3


def field_problems(sample: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[Key, str]]:
    """Yield the keys whose field no row has, or hardly a row where groups are concerned, each with one line that says what to do."""
    rows = [found for found in sample if found.record]
    if not rows:
        return
    for key, column, field in _named(settings, rows):
        missing = [found for found in rows if not _has(found, column)]
        # The rule on groups is about valid rows.
        usable = [found for found in missing if "problem" not in found.row and _has(found, "text")]
        if len(missing) == len(rows):
            yield key, _nowhere(field, column, rows)
        elif column == "group" and len(usable) > settings.examples.max_ungrouped_share * len(rows):
            places = ", ".join(found.place for found in usable[:_SHOWN_PLACES])
            near = _near(field, fields_of([found for found in usable if field not in fields_of([found])]))
            yield (
                key,
                f"{len(usable):,} of {len(rows):,} rows read have no `{field}` ({places}), more than examples.max_ungrouped_share "
                f"({settings.examples.max_ungrouped_share:g}){near or '; deliver them with a group, or allow more'}",
            )


def fields_of(sample: list[Sampled]) -> list[str]:
    """Return the names of the fields that rows have, those of nested objects and of the controls of an export too, as they come."""
    names: dict[str, None] = {}
    for found in sample:
        names.update(dict.fromkeys(flat(found.record)))
        names.update(dict.fromkeys(_controls(found.record)))
    return [name for name in names if name]


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record, with those of the objects that an export nests them in."""
    fields = dict(record)
    for name in _NESTED:
        nested = record.get(name)
        fields |= nested if isinstance(nested, dict) else {}
    return fields


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
    documents, examples, task = settings.documents, settings.examples, task_of(settings.examples)
    if not any(found.is_elsewhere for found in rows):
        yield ("documents", "text"), "text", rows[0].text_field
    if documents.id != DocumentsSettings.model_fields["id"].default:
        yield ("documents", "id"), "id", documents.id
    if task.has_labels and examples.label is not None:
        yield ("examples", "label"), task.target or "label", examples.label
    for column, field in (("group", examples.group), ("domain", examples.domain), ("slice_by", examples.slice_by)):
        if field is not None:
            yield ("examples", column), column, field


def _has(found: Sampled, column: str) -> bool:
    if column == "text":
        return bool(found.row.get("text", "").strip())
    # A label that is malformed is there.
    return column in found.row or (column in ("label", "labels", "spans") and "problem" in found.row and bool(found.row.get("text")))


def _nowhere(field: str, column: str, rows: list[Sampled]) -> str:
    problem = rows[0].row.get("problem")
    if column == "text" and problem not in (None, f"no field `{field}`"):
        return f"none of {len(rows):,} rows read can be used; the first ({rows[0].place}): {problem}"
    known = fields_of(rows)
    if field in known or any(has_field(found.record, field) for found in rows):
        return f"`{field}` is empty in each of {len(rows):,} rows read{_near(field, [name for name in known if name != field])}"
    return f"none of {len(rows):,} rows read has a `{field}`{_near(field, known) or _listed(known)}"


def _near(field: str, fields: list[str]) -> str:
    by_case = {name.strip().casefold(): name for name in reversed(fields)}
    near = difflib.get_close_matches(field.strip().casefold(), by_case, n=1, cutoff=0.5)
    return f"; did you mean `{by_case[near[0]]}`?" if near else ""


def _listed(fields: list[str]) -> str:
    more = f" and {len(fields) - _SHOWN_FIELDS:,} more" if len(fields) > _SHOWN_FIELDS else ""
    return f"; their fields: {', '.join(fields[:_SHOWN_FIELDS])}{more}"
