"""What `fullft check` says of a sample of the delivered rows: labels, groups, values that count as missing,
and rows that no stage can use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fullft_assets.checking.corpus import Sampled
from fullft_assets.checking.fields import flat
from fullft_assets.documents.formats.rows import value_of
from fullft_assets.escaping import quoted
from fullft_assets.examples.labels import named
from fullft_assets.settings import ExamplesSettings, UseCaseSettings
from fullft_assets.task import task_of

_SHOWN_LABELS = 8
_SHOWN_PROBLEMS = 3
#: What a text with several labels has between them, and the share of the labels that must contain it.
_SEPARATORS = (";", "|", ",", "\t")
_SEPARATED_SHARE = 0.2


def findings(rows: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[str, str]]:
    """Yield what a sample of rows says of the settings: (what it is about, one line)."""
    examples = settings.examples
    if task_of(examples).has_labels and rows:
        counts = Counter(label for row in rows for label in labels_of(row, examples))
        common = ((label, f"{count:,}") for label, count in counts.most_common(_SHOWN_LABELS))
        yield "labels", f"{len(counts):,} in {len(rows):,} rows read: {named(common, len(counts), counts)}"
        yield from _separators(counts, examples)
    yield from _missing_values(rows, settings)
    sizes = Counter(row.row["group"] for row in rows if "group" in row.row)
    if sizes:
        largest = sizes.most_common(1)[0][1]
        without = len(rows) - sizes.total()
        alone = f"; {without:,} rows have none, and each is a group of its own" if without else ""
        yield "groups", f"{len(sizes):,} in {len(rows):,} rows read, the largest has {largest:,}{alone}"
    num_long = sum(len(row.row.get("text", "")) > examples.max_characters for row in rows)
    if num_long:
        yield (
            "length",
            f"{num_long:,} of {len(rows):,} rows read are longer than"
            f" {examples.max_characters:,} characters and would be quarantined",
        )
    yield from _malformed(rows)


def labels_of(row: Sampled, examples: ExamplesSettings) -> list[str]:
    """Return the labels of a row as they were delivered."""
    value = row.row.get(task_of(examples).target or "label")
    if isinstance(value, str):
        return [value]
    return [each["label"] if isinstance(each, dict) else each for each in value or []]


def _separators(counts: Counter[str], examples: ExamplesSettings) -> Iterator[tuple[str, str]]:
    """Yield what may separate several labels in what counts as one."""
    if task_of(examples).target != "labels" or examples.label_separator is not None:
        return
    for mark in _SEPARATORS:
        share = sum(count for label, count in counts.items() if mark in label) / max(1, counts.total())
        if share >= _SEPARATED_SHARE:
            yield (
                "labels",
                f"{share:.0%} of them contain `{mark}`: if it separates several, set"
                f" examples.label_separator to '{mark}'",
            )


def _missing_values(rows: list[Sampled], settings: UseCaseSettings) -> Iterator[tuple[str, str]]:
    """Yield the delivered values that count as missing."""
    examples = settings.examples
    words = {word.strip().casefold() for word in settings.documents.missing_values} - {""}
    for key in ("label", "group", "domain", "slice_by"):
        field = getattr(examples, key)
        if field is None or (key == "label" and not task_of(examples).has_labels):
            continue
        values = [value_of(flat(row), field) for row in rows if row.is_plain or key != "label"]
        texts = [value.strip() for value in values if isinstance(value, str)]
        counts = Counter(text for text in texts if text.casefold() in words)
        if counts:
            shown = ", ".join(
                f"{quoted(word)} {count:,}" for word, count in counts.most_common(_SHOWN_LABELS)
            )
            yield "missing", f"{shown} in `{field}` count as no {key}"


def _malformed(rows: list[Sampled]) -> Iterator[tuple[str, str]]:
    """Yield the most common reasons why rows are malformed, with the place of the first row of each."""
    places: dict[str, list[str]] = {}
    for row in rows:
        if (problem := row.row.get("problem")) is not None:
            places.setdefault(problem, []).append(row.place)
    for problem in sorted(places, key=lambda name: -len(places[name]))[:_SHOWN_PROBLEMS]:
        first, *other_places = places[problem]
        number = f"{len(other_places) + 1:,} of {len(rows):,} rows read"
        yield "malformed", f"{number}: {problem} ({first}{', ...' if other_places else ''})"
