"""The rows whose label is probably wrong, found a second time from stored probabilities: see
`verification`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelError:
    """A row whose label is probably wrong; `own` is the probability of its label, and the others are those of
    the likeliest one.
    """

    id: str
    label: str
    suggested: str
    probability: float
    own: float

    @property
    def shown(self) -> dict[str, str | float]:
        """What a list for annotators has of it."""
        return {"label": self.label, "suggested": self.suggested, "probability": round(self.probability, 4)}


def label_errors(
    ids: Sequence[str], labels: Sequence[str], probabilities: np.ndarray, names: Sequence[str]
) -> list[LabelError] | None:
    """Return which of these rows are probably labelled wrong; None without cleanlab.

    Args:
        probabilities: of each label [n, k].
    """
    if importlib.util.find_spec("cleanlab") is None:
        return None
    from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]  # an extra

    shares = probabilities.astype(np.float64)
    shares /= shares.sum(1, keepdims=True)
    place = {name: number for number, name in enumerate(names)}
    own = np.array([place[label] for label in labels])
    wrong = np.flatnonzero(find_label_issues(own, shares, n_jobs=1)).tolist()
    return [
        LabelError(
            ids[row],
            labels[row],
            names[int(shares[row].argmax())],
            float(shares[row].max()),
            float(shares[row, own[row]]),
        )
        for row in wrong
    ]
