"""Spellings of labels: those of examples.labels count in any case, and labels that differ in spelling alone
are found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fullft_assets.settings import ExamplesSettings
from fullft_assets.task import task_of

if TYPE_CHECKING:
    import pyarrow as pa

_BETWEEN_WORDS = re.compile(r"[\s_-]+")


def variants(labels: Iterable[str]) -> list[list[str]]:
    """Return the labels that differ only in case, or in what separates their words, together; each list
    sorted.
    """
    spellings_by_words: dict[str, set[str]] = {}
    for label in labels:
        spellings_by_words.setdefault(_BETWEEN_WORDS.sub(" ", label.casefold()).strip(), set()).add(label)
    return sorted(sorted(spellings) for spellings in spellings_by_words.values() if len(spellings) > 1)


def as_listed(documents: pa.Table, settings: ExamplesSettings) -> pa.Table:
    """Return documents whose labels have the case that examples.labels gives them; nothing changes where two
    of these differ only in case.
    """
    import pyarrow as pa

    known = {label.casefold(): label for label in settings.labels or []}
    target = task_of(settings).target
    if target is None or not known or len(known) < len(settings.labels or []):
        return documents
    targets = documents[target].combine_chunks()
    if target == "label":
        column, annotations = _listed(targets, known), documents["annotations"].combine_chunks()
        if annotations.null_count < len(annotations):
            documents = _with(documents, "annotations", _with_labels(annotations, known))
    elif target == "labels":
        rows = [
            row and sorted({known.get(str(label).casefold(), str(label)) for label in row})
            for row in targets.to_pylist()
        ]
        column = pa.array(rows, targets.type)
    else:
        column = _with_labels(targets, known)
    return _with(documents, target, column)


def _listed(labels: pa.Array, known: Mapping[str, str]) -> pa.Array:
    import pyarrow as pa

    encoded = labels.dictionary_encode()
    names = [known.get(label.casefold(), label) for label in encoded.dictionary.to_pylist()]
    return pa.array(names, labels.type).take(encoded.indices)


def _with_labels(rows: pa.Array, known: Mapping[str, str]) -> pa.Array:
    """Return lists of structs (spans, annotations) whose `label` has the case that is listed."""
    import pyarrow as pa

    listed = [
        None
        if row is None
        else [{**each, "label": known.get((each["label"] or "").casefold(), each["label"])} for each in row]
        for row in rows.to_pylist()
    ]
    return pa.array(listed, rows.type)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)
