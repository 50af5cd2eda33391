"""Are two samples of one distribution? A permutation test for vectors, and distances between counts and between numbers."""

from __future__ import annotations

import numpy as np

#: Maximum rows of a sample in the permutation test, which is quadratic in them.
MAX_ROWS = 2_000
#: Principal directions in which it compares means.
MAX_DIRECTIONS = 64


def permutation_test(old: np.ndarray, new: np.ndarray, *, permutations: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return the maximum mean discrepancy of two samples of vectors [n, d], and the p-value for one common distribution.

    The smaller of two permutation p-values, itself judged over the same permutations (Tippett's combination): the
    maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, "A kernel two-sample test"), which detects a
    changed mixture and a changed spread, and the distance of the means along whitened principal directions, which detects a
    small new part. p = (1 + permutations at least as extreme) / (1 + permutations).
    """
    pooled = np.concatenate([old, new]).astype(np.float64)
    contrasts = _permuted_contrasts(len(old), len(new), permutations, rng)
    discrepancy = _quadratic_forms(contrasts, _gaussian_kernel(pooled))
    distance = np.square(contrasts @ _whiten(pooled)).sum(axis=1)
    extremes = np.minimum(_upper_ranks(discrepancy), _upper_ranks(distance))
    return float(discrepancy[0]), float(np.mean(extremes <= extremes[0]))


def population_stability(reference: np.ndarray, current: np.ndarray) -> float:
    """Return the population stability index over the reference's deciles; above 0.25 is commonly called large.

    A half is added to each count, so that an empty bin stays finite.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0.1, 0.9, 9)))
    bins = [np.searchsorted(edges, values) for values in (reference, current)]
    counts = [np.bincount(row, minlength=len(edges) + 1) + 0.5 for row in bins]
    old, new = (count / count.sum() for count in counts)
    return float(np.sum((new - old) * np.log(new / old)))


def jensen_shannon(old: np.ndarray, new: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two distributions [k] in bits.

    scipy.spatial.distance.jensenshannon is NaN where rounding makes the divergence of equal distributions negative.
    """
    middle = (old + new) / 2
    halves = [np.sum(p[p > 0] * np.log2(p[p > 0] / middle[p > 0])) for p in (old, new)]
    return float(max(sum(halves) / 2, 0.0))


def subsample(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return at most `MAX_ROWS` rows, drawn without replacement."""
    if len(rows) <= MAX_ROWS:
        return rows
    return rows[rng.choice(len(rows), MAX_ROWS, replace=False)]


def _permuted_contrasts(num_old: int, num_new: int, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Return [1 + permutations, num_old + num_new] weights whose product with values is the difference of their means.

    The first row is the observed assignment.
    """
    contrast = np.concatenate([np.full(num_old, 1 / num_old), np.full(num_new, -1 / num_new)])
    return np.concatenate([contrast[None], rng.permuted(np.tile(contrast, (permutations, 1)), axis=1)])


def _gaussian_kernel(rows: np.ndarray) -> np.ndarray:
    """Return the [n, n] Gaussian kernel; its width is the median distance."""
    squares = np.square(rows).sum(axis=1)
    # In place: at 2,000 rows a side each further copy takes 128 MB.
    distances = rows @ rows.T
    distances *= -2
    distances += squares
    distances += squares[:, None]
    width = np.median(distances)
    if width <= 0:
        return np.ones_like(distances)
    distances /= -width
    return np.exp(distances, out=distances)


def _whiten(rows: np.ndarray) -> np.ndarray:
    """Return [n, k] coordinates of unit variance along the first principal directions."""
    from scipy.linalg import eigh

    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred / len(rows)
    size = len(covariance)
    k = min(MAX_DIRECTIONS, size, max(len(rows) // 10, 1))
    values, vectors = eigh(covariance, subset_by_index=[size - k, size - 1])
    kept = values > max(values[-1], 0) * 1e-9
    return centred @ (vectors[:, kept] / np.sqrt(values[kept]))


def _quadratic_forms(weights: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("pn,pn->p", weights @ kernel, weights)


def _upper_ranks(statistics: np.ndarray) -> np.ndarray:
    """Return the share of statistics that are at least as large as each one."""
    # Rounded, so that equal embeddings tie instead of differing by rounding errors.
    statistics = np.round(statistics, 12)
    ordered = np.sort(statistics)
    return 1 - np.searchsorted(ordered, statistics, side="left") / len(statistics)
