"""Rows whose label is probably wrong, and the errors that the model was surest of."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

from fullft_assets.report import DoubtfulRow

#: Rows that the report names.
MOST_SHOWN = 20


def likely_label_errors(
    ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> list[DoubtfulRow] | None:
    """Return the rows whose labels are probably wrong, the surest first; None where cleanlab is not
    installed.

    By confident learning (Northcutt et al. 2021, arXiv:1911.00068): a row counts where the model is surer of
    another label than it usually is of that one. The model must not have learned from these rows.

    Args:
        labels: positions in the label order [n].
        probabilities: of each label [n, k].
    """
    if importlib.util.find_spec("cleanlab") is None:
        return None
    from cleanlab.filter import find_label_issues  # pyright: ignore[reportMissingImports]  # an extra

    shares = np.asarray(probabilities, np.float64)
    shares = shares / shares.sum(1, keepdims=True)
    rows = find_label_issues(labels, shares, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [_row(row, ids, labels, shares, names) for row in np.asarray(rows, np.int64).tolist()]


def worst_errors(
    ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> list[DoubtfulRow]:
    """Return the wrong rows with the highest loss: the model gave their own label the lowest probability."""
    of_label = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    order = wrong[np.argsort(of_label[wrong], kind="stable")][:MOST_SHOWN]
    return [_row(row, ids, labels, probabilities, names) for row in order.tolist()]


def _row(
    row: int, ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> DoubtfulRow:
    best, own = int(probabilities[row].argmax()), int(labels[row])
    probability, of_label = float(probabilities[row, best]), float(probabilities[row, own])
    return DoubtfulRow(ids[row], names[own], names[best], probability, of_label)
