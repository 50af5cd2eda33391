"""Labels: which may be named outside of the store, and their spellings.

Check descriptions, errors and metadata are kept by Dagster for ever. A field that holds free text in place of
labels (by a wrong `examples.label`, or because answers are texts) has many values, or long ones.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

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


def listed(value: Any) -> list[str]:
    """Return the labels of a row as they were delivered: one, several, or those of its spans."""
    values = [value] if isinstance(value, str) else value or []
    return [label["label"] if isinstance(label, dict) else label for label in values]


def named(remarks: Iterable[tuple[str, str]], num_labels: int, all_labels: Collection[str]) -> str:
    """Return some labels, each with a remark, as they may be written outside of the store; only their number
    if the labels may not be named.

    Args:
        remarks: labels, and what is said about each.
        num_labels: labels that this is about; those beyond `remarks` are counted.
        all_labels: the set that they are from, which decides whether they are named.
    """
    if not may_be_named(all_labels):
        return f"{num_labels:,} label{'s' * (num_labels != 1)} ({NOT_NAMED})"
    phrases = [f"{quoted(label)} {about}".rstrip() for label, about in remarks]
    return ", ".join(phrases) + (
        f" and {num_labels - len(phrases):,} more" if num_labels > len(phrases) else ""
    )


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

    spelling_of = {label.casefold(): label for label in settings.labels or []}
    target = task_of(settings).target
    if target is None or not spelling_of or len(spelling_of) < len(settings.labels or []):
        return documents

    def listed(value: Any) -> Any:
        match value:
            case str():
                return spelling_of.get(value.casefold(), value)
            case {"label": label}:
                return {**value, "label": listed(label)}
            case [str(), *_]:
                return sorted({listed(label) for label in value})
            case list():
                return [listed(element) for element in value]
        return value

    for name in (target, "annotations"):
        column = documents[name]
        documents = documents.set_column(
            documents.column_names.index(name),
            documents.schema.field(name),
            pa.array([listed(value) for value in column.to_pylist()], column.type),
        )
    return documents
