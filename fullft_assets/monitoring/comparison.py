"""Production against its own past: are the last windows like the first ones under this champion?

The sampling unit is the window, not the document: related documents that thinning missed, a busy day or a
campaign make windows differ from each other, and the reference windows show by how much. Without permutations
and without an order of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fullft_assets.monitoring.scale import Sums

#: Windows pooled by the second test of each family: small and slow shifts show over several.
POOLED = 3
#: A test alarms at a p-value of at most this, by family and number of pooled windows. Together they alarm in
#: less than 5% of unchanged windows (`benchmarks.drift` measures it).
THRESHOLDS: dict[tuple[str, int], float] = {
    ("embeddings", 1): 0.0045,
    ("embeddings", POOLED): 0.03,
    ("text_statistics", 1): 0.0045,
    ("text_statistics", POOLED): 0.0045,
    ("predicted_labels", 1): 0.0045,
    ("predicted_labels", POOLED): 0.0045,
}
#: The two halves of the reference differ at a p-value of at most this.
HOMOGENEITY = 0.02
#: Fewer reference windows say too little of how much windows differ.
LEAST_WINDOWS = 6
#: Degrees of freedom of the variance between windows, as a share of what independent coordinates would give:
#: measured, not derived.
_DENOMINATOR = 0.3
#: Variance of a document below which a family is constant: about that of a label which one document in 200
#: has.
_LEAST_VARIANCE = 0.5


class Outcome(NamedTuple):
    """Outcome of one test.

    Attributes:
        statistic: squared distance of the means over the one expected of unchanged windows.
        effect: distance of the means beyond the one expected by chance, in standard deviations of documents.
    """

    statistic: float
    p_value: float
    effect: float


def test_windows(reference: Sequence[Sums], recent: Sequence[Sums], family: str) -> Outcome:
    """Test whether the pooled recent windows have the mean of the reference windows in one family of
    coordinates.

    The variance between the reference windows sets the measure: with m their mean, weighted by their sizes
    n_w, and the Gram matrix S of sqrt(n_w) (x_w - m), a document has the variance s2 = tr S / (R - 1). The
    statistic |x - m|^2 / ((1 / N + 1 / N_R) s2) is compared with F(nu, 0.3 (R - 1) nu), where nu is the
    effective number of coordinates, tr(Sigma)^2 / tr(Sigma^2), estimated without bias from S (Srivastava
    2005, "Some tests concerning the covariance matrix in high dimensional data").
    """
    sizes = np.array([sums.num_rows for sums in reference], dtype=np.float64)
    means = np.stack([sums.means[family] for sums in reference])
    centre = np.average(means, axis=0, weights=sizes)
    rows = np.sqrt(sizes)[:, None] * (means - centre)
    gram, degrees = rows @ rows.T, len(reference) - 1
    variance = max(float(np.trace(gram)) / degrees, _LEAST_VARIANCE)
    squares = (
        degrees**2
        / ((degrees - 1) * (degrees + 2))
        * (float(np.square(gram).sum()) / degrees**2 - variance**2 / degrees)
    )
    size = means.shape[1]
    coordinates = float(np.clip(variance**2 / squares if squares > 0 else size, min(3, size), size))
    return _judge(centre, sizes.sum(), variance, coordinates, degrees, recent, family)


def _judge(
    centre: np.ndarray,
    num_reference: float,
    variance: float,
    coordinates: float,
    degrees: int,
    recent: Sequence[Sums],
    family: str,
) -> Outcome:
    from scipy.stats import f

    sizes = np.array([sums.num_rows for sums in recent], dtype=np.float64)
    mean = np.average(np.stack([sums.means[family] for sums in recent]), axis=0, weights=sizes)
    distance = float(np.square(mean - centre).sum())
    expected = (1 / sizes.sum() + 1 / num_reference) * variance
    p_value = float(f.sf(distance / expected, coordinates, _DENOMINATOR * degrees * coordinates))
    return Outcome(distance / expected, p_value, max(distance - expected, 0.0) ** 0.5)
