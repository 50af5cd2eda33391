"""How far annotators agree beyond chance, by Fleiss' kappa.

Fleiss 1971, Measuring Nominal Scale Agreement Among Many Raters, with each item's own number of ratings,
which statsmodels' version does not allow: items weigh the same in the observed agreement and in the shares
of the labels (Gwet 2014, Handbook of Inter-Rater Reliability, ch. 2), which keeps kappa within -1 and 1.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fullft_assets.examples.identity import COLUMNS, IdentityRows, Versions, Votes, superseded

#: An item that was rated, who rated it, and the answer.
Rating = tuple[Hashable, str, str]


@dataclass(frozen=True)
class Agreement:
    """Agreement over the items that two annotators or more labelled.

    `kappa` is None where chance alone would give full agreement (all ratings are one label); so is a label's
    in `label_kappas`, which holds the agreement on that label against the rest.
    """

    kappa: float | None
    label_kappas: dict[str, float | None]
    num_items: int


def metadata_of(agreement: Agreement | None) -> dict[str, Any]:
    """Return the agreement as metadata of an artifact; nothing where no text was labelled twice."""
    return (
        {}
        if agreement is None
        else {
            "kappa": agreement.kappa,
            "kappa_per_label": {
                label: kappa for label, kappa in agreement.label_kappas.items() if kappa is not None
            },
            "num_items_annotated_twice": agreement.num_items,
        }
    )


def of_batch(table: pa.Table) -> Agreement | None:
    """Measure the agreement of a batch of a classification: of rows with `annotations`, and of rows that vote
    on one id; superseded rows do not count.

    Args:
        table: the valid rows, with `examples.identity.COLUMNS`.

    Returns:
        None where no text was labelled by two annotators.
    """
    rows = IdentityRows.of(table.select(COLUMNS))
    versions = Versions.of(rows, np.ones(len(rows), bool))
    votes = Votes.of(rows, versions, "label")
    is_superseded = superseded(rows, versions, votes)
    ratings = list(
        zip(
            votes.items.tolist(),
            table["annotator"].take(votes.voters).to_pylist(),
            votes.answers,
            strict=True,
        )
    )
    for row, answers in enumerate(table["annotations"].to_pylist()):
        if answers and not is_superseded[row]:
            ratings += [(row, answer["annotator"], answer["label"]) for answer in answers]
    return measure(ratings)


def of_votes(rows: IdentityRows, votes: Votes) -> Agreement | None:
    """Measure the agreement of the votes of a classification over all batches; None where nobody votes."""
    if not len(votes.voters):
        return None
    # Sorted: sums of floats must not depend on the order in which batches arrived.
    columns = (rows.table[name].take(votes.voters).to_pylist() for name in ("id", "annotator"))
    return measure(sorted(zip(*columns, votes.answers, strict=True)))


def measure(ratings: Iterable[Rating]) -> Agreement | None:
    """Measure agreement from single ratings; of an annotator's ratings of one item the last counts.

    Returns:
        None where no item has two ratings.
    """
    rated: dict[Hashable, dict[str, str]] = {}
    for item, annotator, label in ratings:
        rated.setdefault(item, {})[annotator] = label
    rated_twice = [list(by_annotator.values()) for by_annotator in rated.values() if len(by_annotator) > 1]
    if not rated_twice:
        return None
    names = sorted({label for labels in rated_twice for label in labels})
    counts = np.array([[labels.count(name) for name in names] for labels in rated_twice], float)
    num_ratings = counts.sum(1, keepdims=True)
    num_pairs = num_ratings * (num_ratings - 1)
    shares = (counts / num_ratings).mean(0)
    observed = float((counts * (counts - 1) / num_pairs).sum(1).mean())
    # Of one label against the rest, an item disagrees in its pairs of one that gave it and one that did not.
    differ = (2 * counts * (num_ratings - counts) / num_pairs).mean(0)
    kappas = [_beyond_chance(1 - d, p * p + (1 - p) * (1 - p)) for d, p in zip(differ, shares, strict=True)]
    return Agreement(
        _beyond_chance(observed, float(shares @ shares)),
        dict(zip(names, kappas, strict=True)),
        len(rated_twice),
    )


def _beyond_chance(observed: float, expected: float) -> float | None:
    return None if np.isclose(expected, 1) else float((observed - expected) / (1 - expected))
