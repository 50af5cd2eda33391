"""How far annotators agree beyond chance: Cohen's kappa for two, Fleiss' for more.

Cohen 1960, A Coefficient of Agreement for Nominal Scales. Fleiss 1971, Measuring Nominal Scale Agreement
Among Many Raters, with each item's own number of ratings: items weigh the same in the observed agreement and in
the shares of the labels (Gwet 2014, Handbook of Inter-Rater Reliability, ch. 2), which keeps kappa within -1 and 1.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fullft_assets.settings import ExamplesSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from fullft_assets.examples.identity import Identity, Rating

_WORD = re.compile(r"\w+")
_OUTSIDE = ""


@dataclass(frozen=True)
class Agreement:
    """Agreement over the items that two annotators or more labelled.

    `kappa` is None where chance alone would give full agreement (all ratings are one label); so is a label's
    in `label_kappas`, which holds the agreement on that label against the rest.
    """

    method: Literal["cohen", "fleiss"]
    kappa: float | None
    label_kappas: dict[str, float | None]
    observed: float
    num_items: int
    num_annotators: int


def metadata_of(found: Agreement | None) -> dict[str, Any]:
    """Return what the metadata of an artifact tells of it; nothing where nobody labelled the same text."""
    if found is None:
        return {}
    return {
        "kappa": found.kappa,
        "kappa_method": found.method,
        "kappa_per_label": {label: kappa for label, kappa in found.label_kappas.items() if kappa is not None},
        "num_items_annotated_twice": found.num_items,
    }


def of_batch(table: pa.Table, found: Identity, settings: ExamplesSettings) -> Agreement | None:
    """Measure the agreement of a batch: of rows with `annotations`, and of rows merged into one; superseded rows do not count.

    The labels of a text are compared one by one, its spans word by word: a word has the label of the span that
    covers its first character.

    Args:
        table: with `documents.COLUMNS`.
        found: which rows are superseded, and the ratings of the merged ones.
        settings: the task.

    Returns:
        None where no text was labelled by two annotators.
    """
    ratings = found.ratings + [rating for rating in _within_rows(table) if not found.superseded[rating[0]]]
    items, annotators, targets = (list(column) for column in zip(*ratings, strict=True)) if ratings else ([], [], [])
    if settings.task == "token_classification":
        return _of_spans(table, items, annotators, [json.loads(target) for target in targets])
    if settings.multi_label:
        return measure_sets(items, annotators, [json.loads(target) for target in targets])
    return measure(items, annotators, targets)


def _within_rows(table: pa.Table) -> list[Rating]:
    import pyarrow.compute as pc

    lists = table["annotations"].combine_chunks()
    found = pc.list_flatten(lists)
    columns = (pc.list_parent_indices(lists), pc.struct_field(found, "annotator"), pc.struct_field(found, "label"))
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def _of_spans(table: pa.Table, items: list[int], annotators: list[str], targets: list[list[dict[str, Any]]]) -> Agreement | None:
    words, people, labels = [], [], []
    for item, annotator, spans in zip(items, annotators, targets, strict=True):
        for word in _WORD.finditer(table["text"][item].as_py() or ""):
            words.append((item, word.start()))
            people.append(annotator)
            labels.append(next((s["label"] for s in spans if s["start"] <= word.start() < s["end"]), _OUTSIDE))
    found = measure(words, people, labels)
    if found is None:
        return None
    found.label_kappas.pop(_OUTSIDE, None)
    return replace(found, num_items=sum(count > 1 for count in Counter(items).values()))


def measure(items: Sequence[Hashable], annotators: Sequence[str], labels: Sequence[str]) -> Agreement | None:
    """Measure agreement from single ratings; of an annotator's ratings of one item the last counts.

    Args:
        items: what was rated, one entry a rating.
        annotators: who rated it.
        labels: the label given.

    Returns:
        None where no item has two ratings.
    """
    import pandas as pd

    frame = pd.DataFrame({"item": pd.Series(items, dtype=object), "annotator": list(annotators), "label": list(labels)})
    frame = frame.drop_duplicates(["item", "annotator"], keep="last")
    frame = frame[frame["item"].duplicated(keep=False)]
    if frame.empty:
        return None
    item, _ = pd.factorize(frame["item"])
    person, people = pd.factorize(frame["annotator"])
    label, names = pd.factorize(frame["label"], sort=True)
    if len(people) == 2:
        return _cohen(item, person, label, list(names))
    return _fleiss(item, label, list(names), len(people))


def measure_sets(items: Sequence[Hashable], annotators: Sequence[str], sets: Sequence[Sequence[str]]) -> Agreement | None:
    """Measure agreement where each rating is a set of labels: on each item, each label is given or not."""
    names = sorted({label for labels in sets for label in labels})
    if not names:
        return None
    rated = [((item, name), who, str(name in labels)) for item, who, labels in zip(items, annotators, sets, strict=True) for name in names]
    overall = measure(*zip(*rated, strict=True))
    if overall is None:
        return None
    label_kappas = {}
    for name in names:
        found = measure(items, annotators, [str(name in labels) for labels in sets])
        label_kappas[name] = None if found is None else found.kappa
    return Agreement(overall.method, overall.kappa, label_kappas, overall.observed, overall.num_items // len(names), overall.num_annotators)


def _kappa(observed: float, expected: float) -> float | None:
    return None if np.isclose(expected, 1) else float((observed - expected) / (1 - expected))


def _cohen(item: np.ndarray, person: np.ndarray, label: np.ndarray, names: list[str]) -> Agreement:
    rated = np.empty((2, item.max() + 1), np.int64)
    rated[person, item] = label
    size, total = len(names), rated.shape[1]
    table = np.bincount(rated[0] * size + rated[1], minlength=size * size).reshape(size, size) / total
    first, second, both = table.sum(1), table.sum(0), np.diag(table)
    kappas = [_kappa(1 - (a + b - 2 * c), a * b + (1 - a) * (1 - b)) for a, b, c in zip(first, second, both, strict=True)]
    given = [at for at in range(size) if first[at] or second[at]]
    return Agreement("cohen", _kappa(both.sum(), first @ second), {names[at]: kappas[at] for at in given}, float(both.sum()), total, 2)


def _fleiss(item: np.ndarray, label: np.ndarray, names: list[str], num_annotators: int) -> Agreement:
    size = len(names)
    pairs, votes = np.unique(item.astype(np.int64) * size + label, return_counts=True)
    row, column = pairs // size, pairs % size
    ratings = np.bincount(item)
    total, n = len(ratings), ratings[row]
    shares = np.bincount(column, votes / n, minlength=size) / total
    observed = float(np.sum(votes * (votes - 1) / (n * (n - 1))) / total)
    # Of one label against the rest, an item disagrees in its pairs of one that gave it and one that did not.
    split = np.bincount(column, 2 * votes * (n - votes) / (n * (n - 1)), minlength=size) / total
    kappas = [_kappa(1 - d, p * p + (1 - p) * (1 - p)) for d, p in zip(split, shares, strict=True)]
    given = np.flatnonzero(shares)
    return Agreement("fleiss", _kappa(observed, shares @ shares), {names[at]: kappas[at] for at in given}, observed, total, num_annotators)
