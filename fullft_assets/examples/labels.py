"""Labels: which may be named outside of the store, and their spellings.

Check descriptions, errors and metadata are kept by Dagster for ever. A field that holds free text in place of
labels (by a wrong `examples.label`, or because answers are texts) has many values, or long ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa

from fullft_assets.escaping import quoted
from fullft_assets.settings import ExamplesSettings
from fullft_assets.task import task_of

#: More distinct values, longer ones or ones of more words are no labels: they may be texts of documents.
MOST_LABELS = 100
LONGEST_LABEL = 40
MOST_WORDS = 6
#: Said where labels are not named.
NOT_NAMED = (
    f"not named, as there are more than {MOST_LABELS} or one has more than {LONGEST_LABEL} characters or"
    f" {MOST_WORDS} words"
)


def may_be_named(labels: Collection[str]) -> bool:
    """Return whether all labels of a set are short, and there are few."""
    return len(labels) <= MOST_LABELS and all(
        len(label) <= LONGEST_LABEL and len(label.split()) <= MOST_WORDS for label in labels
    )


def named(shown: Iterable[tuple[str, str]], num_labels: int, all_labels: Collection[str]) -> str:
    """Return some labels, each with a remark, as they may be written outside of the store; only their number
    if the labels may not be named.

    Args:
        shown: labels, and what is said about each.
        num_labels: labels that this is about; those beyond `shown` are counted.
        all_labels: the set that they are from, which decides whether they are named.
    """
    if not may_be_named(all_labels):
        return f"{num_labels:,} label{'s' * (num_labels != 1)} ({NOT_NAMED})"
    pieces = [f"{quoted(label)} {about}".rstrip() for label, about in shown]
    more = f" and {num_labels - len(pieces):,} more" if num_labels > len(pieces) else ""
    return ", ".join(pieces) + more


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

    encoded = labels.dictionary_encode()
    names = [known.get(label.casefold(), label) for label in encoded.dictionary.to_pylist()]
    return pa.array(names, labels.type).take(encoded.indices)


def _with_labels(rows: pa.Array, known: Mapping[str, str]) -> pa.Array:

    listed = [
        None
        if row is None
        else [{**each, "label": known.get((each["label"] or "").casefold(), each["label"])} for each in row]
        for row in rows.to_pylist()
    ]
    return pa.array(listed, rows.type)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)
