"""Which labels may be named outside of the store: in check descriptions, errors and metadata, which Dagster
keeps for ever.

A field that holds free text in place of labels (by a wrong `examples.label`, or because answers are texts)
has many values, or long ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fullft_assets.escaping import quoted

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
