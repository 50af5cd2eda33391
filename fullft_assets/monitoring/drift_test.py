"""What a drift test is: windows of production are compared with earlier ones in one respect.

Another package registers a subclass of `DriftTest`, and `monitoring.drift_tests` names it:

    [project.entry-points."fullft_assets.drift_tests"]
    readability = "their_package.readability:Readability"
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from fullft_assets.monitoring.comparison import compare_means
from fullft_assets.monitoring.features import Features
from fullft_assets.monitoring.sums import Sums
from fullft_assets.settings.monitoring import DRIFT_TESTS

#: Windows pooled by the second comparison of each test: small and slow shifts show over several.
POOLED = 3


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
    """One respect in which windows are compared: documents have coordinates in it, and windows the means.

    Attributes:
        arrays: names of what `fit` returns, which no other test uses.
        outlives_champion: whether no training moves the coordinates, so that windows are compared with those
            under an earlier champion, too.
        thresholds: p-value up to which windows differ, by the number of pooled windows. Those of our tests
            together alarm in less than 5% of unchanged windows (`benchmarks.drift` measures it).
    """

    name: ClassVar[str]
    arrays: ClassVar[tuple[str, ...]] = ()
    outlives_champion: ClassVar[bool] = False
    thresholds: ClassVar[Mapping[int, float]] = {1: 0.0045, POOLED: 0.0045}

    def fit(self, held_out: Features, num_labels: int) -> dict[str, np.ndarray]:
        """Return the arrays that coordinates are computed with, from held-out rows.

        Args:
            num_labels: labels that the model predicts.
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
        threshold = self.thresholds.get(len(current), self.thresholds[1])
        return Outcome(statistic, p_value, p_value <= threshold, effect)

    @abstractmethod
    def in_words(self, reference: Sequence[Sums], current: Sequence[Sums], labels: Sequence[str]) -> str:
        """Return what changed, in words.

        Args:
            labels: in the order of the model's outputs.
        """


def open_tests(names: Iterable[str]) -> list[DriftTest]:
    """Return the drift tests of these names.

    Raises:
        SettingsError: one is not registered.
    """
    return [DRIFT_TESTS.get(name)() for name in names]
