"""Whitened principal components."""

from __future__ import annotations

import numpy as np

#: Rows for each component: of fewer, the smallest ones are mostly noise.
_ROWS_A_COMPONENT = 4


def whitening(rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [d] and the axes [d, k] on which rows [n, d] have unit variance: the first principal
    components.

    Args:
        most: maximum number of components.
    """
    centre = rows.mean(axis=0)
    values, vectors = np.linalg.eigh(
        np.cov(rows - centre, rowvar=False, bias=True).reshape(len(centre), len(centre))
    )
    most = min(most, max(1, len(rows) // _ROWS_A_COMPONENT))
    largest = np.flatnonzero(values > max(values[-1], 1e-12) * 1e-6)[::-1][:most]
    return centre, vectors[:, largest] / np.sqrt(values[largest])
