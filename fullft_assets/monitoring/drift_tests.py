"""The drift tests, and the scale that they are fitted to: windows of production are compared with earlier
ones, each test in one respect.

Another package registers a subclass of `DriftTest`, and `monitoring.drift_tests` names it:

    [project.entry-points."fullft_assets.drift_tests"]
    readability = "their_package.readability:Readability"
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np

from fullft_assets.errors import StoreError
from fullft_assets.examples.labels import named
from fullft_assets.monitoring.features import NUMBERS, Features, Sums, save_arrays
from fullft_assets.settings.production import DRIFT_TESTS, OUR_DRIFT_TESTS

#: Windows pooled by the second comparison of each test: small and slow shifts show over several.
POOLED = 3
#: Degrees of freedom of the variance between windows, as a share of what independent coordinates would give:
#: measured, not derived.
_DENOMINATOR = 0.3
#: Variance of a document below which coordinates are constant: about that of a label which one document in
#: 200 has.
_LEAST_VARIANCE = 0.5
#: Share of the topics that outlast a window which the window after the next one still has.
_TOPICS_THAT_LAST = 0.7


def compare_means(
    reference: Sequence[np.ndarray],
    reference_sizes: Sequence[int],
    current: Sequence[np.ndarray],
    current_sizes: Sequence[int],
) -> tuple[float, float, float]:
    """Return statistic, p-value and effect of the difference between the pooled mean of the current windows
    and that of the reference windows; see `Outcome`.

    The variance between the reference windows sets the measure: with m their mean, weighted by their sizes
    n_w, and the Gram matrix S of sqrt(n_w) (x_w - m), a document has the variance s2 = tr S / (R - a). The
    statistic |x - m|^2 / ((b / N + a / N_R) s2) is compared with F(nu, 0.3 (R - 1) nu), where nu is the
    effective number of coordinates, tr(Sigma)^2 / tr(Sigma^2), estimated without bias from S (Srivastava
    2005, "Some tests concerning the covariance matrix in high dimensional data"). The factors a and b are 1
    where windows are independent. Neighbouring windows that are alike make the means of several windows vary
    by more, a times for R and b times for the current ones: see `_inflation`.

    Args:
        reference, current: the mean coordinates [k] of each window, one window after the other.
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
    distance = float(np.square(np.average(np.stack(current), axis=0, weights=current_sizes) - centre).sum())
    # A change within the reference looks like topics that last; the comparison of its halves is after it.
    lasting_share = _lasting_share(gram) if len(current) <= POOLED else 0.0
    of_current, of_reference = (1 + lasting_share * _inflation(len(side)) for side in (current, reference))
    variance *= degrees / (len(reference) - of_reference)
    expected_distance = (of_current / sum(current_sizes) + of_reference / sizes.sum()) * variance
    p_value = float(f.sf(distance / expected_distance, coordinates, _DENOMINATOR * degrees * coordinates))
    return distance / expected_distance, p_value, max(distance - expected_distance, 0.0) ** 0.5


def _inflation(num_windows: int) -> float:
    """Return by how much of itself the variance of a mean of so many windows is larger where all that varies
    between windows is topics that last (Newey and West 1987, with an autocorrelation that is given).
    """
    lags = np.arange(1, num_windows)
    return 2 * float(((1 - lags / num_windows) * _TOPICS_THAT_LAST**lags).sum())


def _lasting_share(gram: np.ndarray) -> float:
    """Return which share of the variance between windows, 0 to 1, is of topics that outlast a window.

    Lags of one and two windows tell it: their autocorrelations q_k, summed over all coordinates, are
    expected to be (g r^k - A / R) / (1 - A / R), with g the share, r what lasts and A / R the variance of the
    mean of all R windows, which was subtracted from each.

    Args:
        gram: products of the deviations of windows from their mean [windows, windows], in their order.
    """
    num_windows = len(gram)
    lags = np.arange(1, 3)
    expected = _TOPICS_THAT_LAST**lags
    likeness = np.array([np.diagonal(gram, lag).mean() for lag in lags]) / max(np.trace(gram), 1e-12)
    above = expected @ (likeness * num_windows * (num_windows - 1) + 1)
    most = expected @ (expected * num_windows - (1 - likeness * num_windows) * _inflation(num_windows))
    return float(np.clip(max(above, 0.0) / max(most, 1e-12), 0.0, 1.0))


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


class Outcome(NamedTuple):
    """Outcome of one comparison.

    Attributes:
        statistic: for a comparison of means, the squared distance of the means over the one expected of
            unchanged windows.
        effect: the size of the change, in standard deviations of documents; 0 = not measured.
    """

    statistic: float
    p_value: float
    drifted: bool
    effect: float = 0.0


class DriftTest(ABC):
    """A test of one property of documents: each document has coordinates, and windows are compared by the
    means of their documents' coordinates.

    Attributes:
        arrays: names of what `fit` returns, which no other test uses.
        needs_label: whether the coordinates are of predicted labels: other tasks are compared without it.
        outlives_champion: whether no training moves the coordinates, so that windows are compared with those
            under an earlier champion, too.
        thresholds: p-value up to which windows differ, by the number of pooled windows. Those of our tests
            together alarm in less than 5% of unchanged windows (`benchmarks.drift` measures it).
    """

    name: ClassVar[str]
    arrays: ClassVar[tuple[str, ...]] = ()
    needs_label: ClassVar[bool] = False
    outlives_champion: ClassVar[bool] = False
    thresholds: ClassVar[Mapping[int, float]] = {1: 0.0045, POOLED: 0.02}

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return the arrays that coordinates are computed with, from held-out rows.

        Args:
            num_labels: labels that the model predicts; 0 where it predicts none.
        """
        return {}

    @abstractmethod
    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return the coordinates [n, k] of documents, of about unit variance in each.

        Args:
            fitted: has what `fit` returned.
        """

    def compare(self, reference: Sequence[Sums], current: Sequence[Sums]) -> Outcome:
        """Compare the pooled current windows with the reference windows, by their means."""
        means = [[window.means[self.name] for window in side] for side in (reference, current)]
        sizes = [[window.num_rows for window in side] for side in (reference, current)]
        statistic, p_value, effect = compare_means(means[0], sizes[0], means[1], sizes[1])
        # Only the halves of a reference are more windows.
        return Outcome(
            statistic, p_value, p_value <= self.thresholds.get(len(current), self.thresholds[1]), effect
        )

    @abstractmethod
    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return a description of the change.

        Args:
            labels: in the order of the model's outputs.
        """


def open_tests(names: Iterable[str], *, has_label: bool = True) -> list[DriftTest]:
    """Return the drift tests of these names.

    Args:
        has_label: whether the model predicts a label; the tests that need one are left out where it does not.

    Raises:
        SettingsError: one is not registered.
    """
    return [test for test in [DRIFT_TESTS.get(name)() for name in names] if has_label or not test.needs_label]


#: Principal components of the embeddings. Of twice as many, the smaller half is mostly noise, which whitening
#: makes as loud as the rest.
MAX_COMPONENTS = 64


class Content(DriftTest):
    """Compares embeddings on the whitened principal components of the held-out rows: `centre` and `axes`."""

    name = "embeddings"
    arrays = ("centre", "axes")
    outlives_champion = True
    thresholds = {1: 0.0045, POOLED: 0.03}

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return the mean embedding [d] of held-out rows, and their whitened principal components [d, k]."""
        centre, axes = whitening(held_out.embeddings.astype(np.float64), MAX_COMPONENTS)
        return {"centre": centre, "axes": axes}

    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return the components of each document's embedding.

        Raises:
            ValueError: the documents were read by another model than the held-out rows.
        """
        size = features.embeddings.shape[1]
        if size != len(fitted["centre"]):
            raise ValueError(
                f"embeddings have {size} dimensions, those of the held-out rows {len(fitted['centre'])}: they"
                " were read by different models"
            )
        return (features.embeddings - fitted["centre"]) @ fitted["axes"]

    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return that the content changed."""
        return "the content of the texts changed"


#: A label rarer than this weighs as if it had this share, so that one stray prediction is no drift.
_LEAST_SHARE = 0.01


class PredictedLabels(DriftTest):
    """Compares the shares of the predicted labels."""

    name = "predicted_labels"
    needs_label = True
    arrays = ("label_weights",)

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return 1 / square root of each label's share [labels] of the held-out rows' predictions."""
        assert held_out.predicted is not None
        shares = np.bincount(held_out.predicted, minlength=num_labels) / len(held_out)
        return {"label_weights": 1 / np.sqrt(np.maximum(shares, _LEAST_SHARE))}

    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return one coordinate a label: its weight where it is predicted, else 0."""
        weights = fitted["label_weights"]
        return np.eye(len(weights))[features.predicted] * weights

    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return which label's share changed most."""
        counts = (np.sum([window.counts for window in side], axis=0) for side in (reference, current))
        old, new = (of_side / of_side.sum() for of_side in counts)
        largest = int(np.argmax(np.abs(new - old)))
        label = labels[largest] if largest < len(labels) else f"label {largest}"
        return (
            f"predicted labels shift, most {named([(label, '')], 1, labels)}:"
            f" {old[largest]:.1%} -> {new[largest]:.1%}"
        )


#: What each number is.
_WORDS = {
    "num_tokens": "tokens of a text",
    "fertility": "tokens of a word",
    "unknown_share": "share of words that are new to the training texts",
    "entropy": "uncertainty of the model (nats)",
}


class TextStatistics(DriftTest):
    """Compares ranks of the numbers among those of the held-out rows."""

    name = "text_statistics"
    arrays = ("ranks", "ranks_centre", "ranks_axes")

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return the sorted numbers [n, c] of held-out rows, and the mean [2 c] and the whitened axes
        [2 c, r] of their mid-ranks and the squares of those.
        """
        ranks = np.sort(held_out.numbers, axis=0)
        centre, axes = whitening(_mid_ranks(ranks, held_out.numbers), 2 * ranks.shape[1])
        return {"ranks": ranks, "ranks_centre": centre, "ranks_axes": axes}

    def coordinates(self, fitted: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
        """Return the whitened mid-ranks of each document's numbers."""
        return (_mid_ranks(fitted["ranks"], features.numbers) - fitted["ranks_centre"]) @ fitted["ranks_axes"]

    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return which of the numbers changed by a tenth or more, and from what to what."""
        old, new = (
            np.average([window.numbers for window in side], axis=0, weights=[w.num_rows for w in side])
            for side in (reference, current)
        )
        # Of several numbers some always differ a little: a tenth is worth a word.
        changes = [
            f"{_WORDS[name]}: {before:.3g} -> {now:.3g}"
            for name, before, now in zip(NUMBERS, old.tolist(), new.tolist(), strict=False)
            if abs(now - before) >= 0.1 * max(abs(now), abs(before), 1e-12)
        ]
        return ", ".join(changes) or "lengths and words of the texts are distributed differently"


def _mid_ranks(ordered: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the mid-ranks [n, c], 0 to 1, of numbers among each column's ordered ones, and their squares, as
    [n, 2 c].
    """
    columns = [
        (np.searchsorted(column, values, "left") + np.searchsorted(column, values, "right"))
        / (2 * len(column))
        for column, values in zip(ordered.T, numbers.T, strict=True)
    ]
    ranks = np.stack(columns, axis=1)
    return np.concatenate([ranks, np.square(ranks)], axis=1)


#: File of a `drift_scale`.
SCALE = "scale.npz"
#: Share of the held-out rows that are farther from all others than the distance which makes a document far.
FAR_SHARE = 0.05


@dataclass(frozen=True)
class Scale:
    """Coordinates of documents, scaled so that held-out rows have about unit variance in each.

    Attributes:
        tests: the drift tests that coordinates are for.
        fitted: what they were fitted to.
        held_out: [n, d] embeddings of the held-out rows, of unit length.
        far: distance from its nearest held-out row that 95% of the held-out rows do not exceed.
    """

    tests: Sequence[DriftTest]
    fitted: Mapping[str, np.ndarray]
    held_out: np.ndarray
    far: np.ndarray

    @classmethod
    def fit(cls, held_out: Features, num_labels: int, tests: Sequence[str] = OUR_DRIFT_TESTS) -> Self:
        """Return the scale of held-out rows.

        Args:
            num_labels: labels that the model predicts; 0 where it predicts none.
            tests: names of the drift tests.
        """
        drift_tests = open_tests(tests, has_label=num_labels > 0)
        arrays: dict[str, np.ndarray] = {}
        for test in drift_tests:
            arrays |= test.fit(held_out, num_labels)
        # Documents are counted by label whatever is tested.
        arrays["num_labels"] = np.array(num_labels)
        unit = _unit(held_out.embeddings)
        return cls(drift_tests, arrays, unit, np.quantile(_nearest(unit, unit, itself=True), 1 - FAR_SHARE))

    def coordinates(self, features: Features) -> dict[str, np.ndarray]:
        """Return the coordinates [n, ...] of documents by drift test.

        Raises:
            ValueError: the documents were read by another model than the held-out rows.
        """
        return {test.name: test.coordinates(self.fitted, features) for test in self.tests}

    def sums(self, features: Features) -> Sums:
        """Return the sums of a window's documents."""
        means = {name: values.mean(axis=0) for name, values in self.coordinates(features).items()}
        distances = self.distances(features)
        # A scale that an earlier release wrote has a weight for each label instead of their number.
        num_labels = (
            int(self.fitted["num_labels"])
            if "num_labels" in self.fitted
            else len(self.fitted["label_weights"])
        )
        return Sums(
            num_rows=len(features),
            means=means,
            numbers=features.numbers.mean(axis=0),
            counts=np.bincount(
                [] if features.predicted is None else features.predicted, minlength=num_labels
            ),
            # Rounded, and no negative zero: a share of exactly 5% is 0, and was shown as -4e-17.
            novel_share=(
                None if distances is None else round(float((distances > 1).mean()) - FAR_SHARE, 9) + 0.0
            ),
        )

    def distances(self, features: Features) -> np.ndarray | None:
        """Return each document's distance from its nearest held-out row, in multiples of `far`; None without
        held-out rows.
        """
        return (
            _nearest(_unit(features.embeddings), self.held_out) / max(float(self.far), 1e-12)
            if len(self.held_out)
            else None
        )

    def with_content_of(self, other_scale: Self) -> Self:
        """Return the scale with the arrays of another scale, on which earlier windows were read, for the
        tests that outlive a champion.
        """
        names = [name for test in self.tests if test.outlives_champion for name in test.arrays]
        return replace(self, fitted={**self.fitted, **{name: other_scale.fitted[name] for name in names}})

    def without_rows(self) -> Self:
        """Return the scale without the embeddings of single rows; the coordinates stay as they are."""
        return replace(self, held_out=self.held_out[:0])

    def save(self, path: Path) -> None:
        """Write the scale as an .npz file."""
        save_arrays(path, {**self.fitted, "held_out": self.held_out, "far": self.far})

    @classmethod
    def load(cls, path: Path, tests: Sequence[str] = OUR_DRIFT_TESTS) -> Self:
        """Read what `save` wrote.

        Args:
            tests: names of the drift tests that it is read for.

        Raises:
            StoreError: an array is missing.
        """
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        drift_tests = open_tests(tests, has_label=arrays.get("num_labels", 1) > 0)
        for name in ("held_out", "far", *(name for test in drift_tests for name in test.arrays)):
            if name not in arrays:
                raise StoreError(f"{path}: no array `{name}`; materialise the drift report again")
        return cls(drift_tests, arrays, arrays.pop("held_out"), arrays.pop("far"))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)


def _nearest(rows: np.ndarray, held_out: np.ndarray, *, itself: bool = False) -> np.ndarray:
    likeness = rows @ held_out.T
    if itself:
        np.fill_diagonal(likeness, -1)
    return 1 - likeness.max(axis=1)
