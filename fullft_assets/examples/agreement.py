"""How far annotators agree beyond chance: Cohen's kappa for two, Fleiss' for more.

Cohen 1960, A Coefficient of Agreement for Nominal Scales (as scikit-learn computes it). Fleiss 1971,
Measuring Nominal Scale Agreement Among Many Raters, with each item's own number of ratings, which
statsmodels' version does not allow: items weigh the same in the observed agreement and in the shares of the
labels (Gwet 2014, Handbook of Inter-Rater Reliability, ch. 2), which keeps kappa within -1 and 1.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fullft_assets.examples.identity import COLUMNS, IdentityRows, Versions, Votes, superseded
from fullft_assets.settings import ExamplesSettings
from fullft_assets.task import Target, task_of

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


def metadata_of(agreement: Agreement | None) -> dict[str, Any]:
    """Return the agreement as metadata of an artifact; nothing where no text was labelled twice."""
    if agreement is None:
        return {}
    return {
        "kappa": agreement.kappa,
        "kappa_method": agreement.method,
        "kappa_per_label": {
            label: kappa for label, kappa in agreement.label_kappas.items() if kappa is not None
        },
        "num_items_annotated_twice": agreement.num_items,
    }


def of_batch(table: pa.Table, settings: ExamplesSettings) -> Agreement | None:
    """Measure the agreement of a batch: of rows with `annotations`, and of rows that vote on one id;
    superseded rows do not count.

    The labels of a text are compared one by one, its spans word by word: a word has the label of the span
    that covers its first character.

    Args:
        table: the valid rows, with `examples.identity.COLUMNS`.
        settings: the task.

    Returns:
        None where no text was labelled by two annotators.
    """
    target = task_of(settings).target
    rows = IdentityRows.of(table.select(COLUMNS))
    versions = Versions.of(rows, np.ones(len(rows), bool))
    votes = Votes.of(rows, versions, target)
    is_superseded = superseded(rows, versions, votes)
    voters = table["annotator"].take(votes.voters).to_pylist()
    ratings = list(zip(votes.items.tolist(), voters, votes.answers, strict=True))
    for row, answers in enumerate(table["annotations"].to_pylist()):
        if answers and not is_superseded[row]:
            ratings += [(row, each["annotator"], each["label"]) for each in answers]
    return _of_ratings(ratings, target, table["text"])


def of_votes(rows: IdentityRows, votes: Votes, target: Target | None) -> Agreement | None:
    """Measure the agreement of the votes of a classification over all batches; None where nobody votes."""
    if not len(votes.voters):
        return None
    # Sorted: sums of floats must not depend on the order in which batches arrived.
    who = (rows.table[name].take(votes.voters).to_pylist() for name in ("id", "annotator"))
    return _of_ratings(sorted(zip(*who, votes.answers, strict=True)), target)


def _of_ratings(
    ratings: list[tuple[Any, str, str]], target: Target | None, texts: pa.ChunkedArray | None = None
) -> Agreement | None:
    if not ratings:
        return None
    items, annotators, answers = (list(column) for column in zip(*ratings, strict=True))
    if target == "labels":
        return measure_sets(items, annotators, [json.loads(answer) for answer in answers])
    if target != "spans" or texts is None:
        return measure(items, annotators, answers)
    words = [
        ((item, word.start()), annotator, _label_at(word.start(), json.loads(answer)))
        for item, annotator, answer in ratings
        for word in _WORD.finditer(texts[item].as_py() or "")
    ]
    agreement = measure(*zip(*words, strict=True)) if words else None
    if agreement is None:
        return None
    agreement.label_kappas.pop(_OUTSIDE, None)
    return replace(agreement, num_items=sum(count > 1 for count in Counter(items).values()))


def _label_at(position: int, spans: list[dict[str, Any]]) -> str:
    return next((span["label"] for span in spans if span["start"] <= position < span["end"]), _OUTSIDE)


def measure(items: Sequence[Hashable], annotators: Sequence[str], labels: Sequence[str]) -> Agreement | None:
    """Measure agreement from single ratings; of an annotator's ratings of one item the last counts.

    Args:
        items: what was rated, one entry a rating.
        annotators: who rated it.
        labels: the label given.

    Returns:
        None where no item has two ratings.
    """
    rated: dict[Hashable, dict[str, str]] = {}
    for item, annotator, label in zip(items, annotators, labels, strict=True):
        rated.setdefault(item, {})[annotator] = label
    rated_twice = [by_annotator for by_annotator in rated.values() if len(by_annotator) > 1]
    if not rated_twice:
        return None
    people = sorted({annotator for by_annotator in rated_twice for annotator in by_annotator})
    if len(people) == 2:
        return _cohen(*([by_annotator[annotator] for by_annotator in rated_twice] for annotator in people))
    return _fleiss([list(by_annotator.values()) for by_annotator in rated_twice], len(people))


def measure_sets(
    items: Sequence[Hashable], annotators: Sequence[str], sets: Sequence[Sequence[str]]
) -> Agreement | None:
    """Measure agreement where each rating is a set of labels: on each item, each label is given or not."""
    names = sorted({label for labels in sets for label in labels})
    if not names:
        return None
    rated = [
        ((item, name), who, str(name in labels))
        for item, who, labels in zip(items, annotators, sets, strict=True)
        for name in names
    ]
    overall = measure(*zip(*rated, strict=True))
    if overall is None:
        return None
    label_kappas = {}
    for name in names:
        of_label = measure(items, annotators, [str(name in labels) for labels in sets])
        label_kappas[name] = None if of_label is None else of_label.kappa
    return Agreement(
        overall.method,
        overall.kappa,
        label_kappas,
        overall.observed,
        overall.num_items // len(names),
        overall.num_annotators,
    )


def _cohen(first: list[str], second: list[str]) -> Agreement:
    def kappa(one: Sequence[Any], other: Sequence[Any]) -> float | None:
        from sklearn.metrics import cohen_kappa_score

        # With one label alone chance gives full agreement; scikit-learn warns, and returns no number.
        return float(cohen_kappa_score(one, other)) if len({*one, *other}) > 1 else None

    names = sorted({*first, *second})
    label_kappas = {
        name: kappa([label == name for label in first], [label == name for label in second]) for name in names
    }
    observed = float(np.mean([a == b for a, b in zip(first, second, strict=True)]))
    return Agreement("cohen", kappa(first, second), label_kappas, observed, len(first), 2)


def _fleiss(ratings: list[list[str]], num_annotators: int) -> Agreement:
    names = sorted({label for labels in ratings for label in labels})
    counts = np.array([[labels.count(name) for name in names] for labels in ratings], float)
    num_ratings = counts.sum(1, keepdims=True)
    num_pairs = num_ratings * (num_ratings - 1)
    shares = (counts / num_ratings).mean(0)
    observed = float((counts * (counts - 1) / num_pairs).sum(1).mean())
    # Of one label against the rest, an item disagrees in its pairs of one that gave it and one that did not.
    differ = (2 * counts * (num_ratings - counts) / num_pairs).mean(0)
    kappas = [_beyond_chance(1 - d, p * p + (1 - p) * (1 - p)) for d, p in zip(differ, shares, strict=True)]
    label_kappas = dict(zip(names, kappas, strict=True))
    return Agreement(
        "fleiss",
        _beyond_chance(observed, float(shares @ shares)),
        label_kappas,
        observed,
        len(ratings),
        num_annotators,
    )


def _beyond_chance(observed: float, expected: float) -> float | None:
    return None if np.isclose(expected, 1) else float((observed - expected) / (1 - expected))
