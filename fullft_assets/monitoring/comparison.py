"""Production against its own past: have the last windows the means of the first ones under this champion?

The sampling unit is the window, not the document: related documents that thinning missed, a busy day or a
campaign make windows differ from each other, and the reference windows show by how much. Without permutations
and without an order of documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Degrees of freedom of the variance between windows, as a share of what independent coordinates would give:
#: measured, not derived.
_DENOMINATOR = 0.3
#: Variance of a document below which coordinates are constant: about that of a label which one document in
#: 200 has.
_LEAST_VARIANCE = 0.5


def compare_means(
    reference: Sequence[np.ndarray],
    reference_sizes: Sequence[int],
    current: Sequence[np.ndarray],
    current_sizes: Sequence[int],
) -> tuple[float, float, float]:
    """Return statistic, p-value and effect of the difference between the pooled mean of the current windows
    and that of the reference windows; see `drift_test.Outcome`.

    The variance between the reference windows sets the measure: with m their mean, weighted by their sizes
    n_w, and the Gram matrix S of sqrt(n_w) (x_w - m), a document has the variance s2 = tr S / (R - 1). The
    statistic |x - m|^2 / ((1 / N + 1 / N_R) s2) is compared with F(nu, 0.3 (R - 1) nu), where nu is the
    effective number of coordinates, tr(Sigma)^2 / tr(Sigma^2), estimated without bias from S (Srivastava
    2005, "Some tests concerning the covariance matrix in high dimensional data").

    Args:
        reference, current: the mean coordinates [k] of each window.
        reference_sizes, current_sizes: the documents of each window.
    """
    from scipy.stats import f

    sizes = np.array(reference_sizes, dtype=np.float64)
    means = np.stack(reference)
    centre = np.average(means, axis=0, weights=sizes)
    rows = np.sqrt(sizes)[:, None] * (means - centre)
    gram = rows @ rows.T
    degrees = len(reference) - 1
    variance = max(float(np.trace(gram)) / degrees, _LEAST_VARIANCE)
    unbiased = float(np.square(gram).sum()) / degrees**2 - variance**2 / degrees
    squares = degrees**2 / ((degrees - 1) * (degrees + 2)) * unbiased
    size = means.shape[1]
    coordinates = float(np.clip(variance**2 / squares if squares > 0 else size, min(3, size), size))
    mean = np.average(np.stack(current), axis=0, weights=current_sizes)
    distance = float(np.square(mean - centre).sum())
    expected = (1 / sum(current_sizes) + 1 / sizes.sum()) * variance
    p_value = float(f.sf(distance / expected, coordinates, _DENOMINATOR * degrees * coordinates))
    return distance / expected, p_value, max(distance - expected, 0.0) ** 0.5
