"""Live quality: false alarms in a year of looks, and after how many labels a drop is found, by the project's
own bounds.

`python -m benchmarks.live_quality [--worlds N]` prints a Markdown table. A world has a champion with a true
accuracy, test rows that it was released on, and production documents whose labels come late and out of order;
somebody looks once a day for a year. A second table is exact: a random sample is labelled and delivered at
once, so that there is one look.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from fullft_assets.evaluation.intervals import bounded_interval
from fullft_assets.monitoring.live import log_evidence_below

ACCURACY = 0.85
CONFIDENCE = 0.95
#: One look a day, and labels that a day's documents get sooner or later.
NUM_LOOKS, LABELS_A_DAY = 365, 20
#: The longest that a label takes; those of wrong and of right predictions take equally long.
MAX_DELAY_DAYS = 60
NUM_WORLDS = 1_000
TEST_ROWS = (300, 1_000, 3_000)
DROPS = (0.05, 0.10, 0.20)
#: Labels of an audit, and the power that it should have.
AUDIT_LABELS, POWER = (300, 600), 0.8


@dataclass(frozen=True)
class Found:
    """The share of worlds in which a drop was found within the year, and the labels that it took (infinite
    where it was not).
    """

    rate: float
    num_labels: np.ndarray


def simulate(num_worlds: int, num_test_rows: int, drop: float, seed: int, *, candidates: int = 1) -> Found:
    """Return what the looks of a year find.

    Args:
        drop: of the true accuracy, from the first day on; 0: nothing changed.
        candidates: equally good models that were compared on the test rows; the one that looked best was
            released.
    """
    rng = np.random.default_rng(seed)
    right_at_release = rng.binomial(num_test_rows, ACCURACY, (num_worlds, candidates)).max(axis=1)
    least = np.array([_release_low(right, num_test_rows) for right in right_at_release])
    right = rng.binomial(1, ACCURACY - drop, (num_worlds, NUM_LOOKS, LABELS_A_DAY)).reshape(num_worlds, -1)
    arrives = np.repeat(np.arange(NUM_LOOKS), LABELS_A_DAY) + rng.integers(
        0, MAX_DELAY_DAYS + 1, (num_worlds, NUM_LOOKS * LABELS_A_DAY)
    )
    num_right, num = np.zeros((num_worlds, NUM_LOOKS)), np.zeros((num_worlds, NUM_LOOKS))
    for world in range(num_worlds):
        num[world] = np.cumsum(np.bincount(arrives[world], minlength=NUM_LOOKS)[:NUM_LOOKS])
        num_right[world] = np.cumsum(
            np.bincount(arrives[world], weights=right[world], minlength=NUM_LOOKS)[:NUM_LOOKS]
        )
    # What `live.judge` asks at each look: is the upper bound below the lower end of the release's interval?
    below = log_evidence_below(num_right, num, least[:, None]) >= -np.log((1 - CONFIDENCE) / 2)
    is_found, first = below.any(axis=1), below.argmax(axis=1)
    return Found(float(is_found.mean()), np.where(is_found, num[np.arange(num_worlds), first], np.inf))


def _release_low(num_right: int, num_rows: int) -> float:
    accuracy = num_right / num_rows
    error = float(np.sqrt(accuracy * (1 - accuracy) / num_rows))
    return bounded_interval(accuracy, error, num_rows - 1, CONFIDENCE, (0, 1)).low


def audit_power(num_labels: int, num_test_rows: int, drop: float) -> float:
    """Return the chance that one look at so many labels finds a drop."""
    from scipy.stats import binom

    at_release = np.arange(int(binom.ppf(1e-6, num_test_rows, ACCURACY)), num_test_rows + 1)
    least = np.array([_release_low(int(right), num_test_rows) for right in at_release])
    right = np.arange(num_labels + 1)
    below = log_evidence_below(right, num_labels, least[:, None]) >= -np.log((1 - CONFIDENCE) / 2)
    found = (below * binom.pmf(right, num_labels, ACCURACY - drop)).sum(axis=1)
    return float((found * binom.pmf(at_release, num_test_rows, ACCURACY)).sum())


def two_sample_power(num_labels: int, num_test_rows: int, drop: float) -> float:
    """Return the chance that the usual two-sample z-test of two sides finds a drop, for comparison: it holds
    at one look alone.
    """
    from scipy.stats import binom, norm

    at_release, right = np.arange(num_test_rows + 1)[:, None], np.arange(num_labels + 1)
    share = (at_release + right) / (num_test_rows + num_labels)
    error = np.sqrt(np.maximum(share * (1 - share), 1e-12) * (1 / num_test_rows + 1 / num_labels))
    is_found = at_release / num_test_rows - right / num_labels > norm.ppf((1 + CONFIDENCE) / 2) * error
    found = (is_found * binom.pmf(right, num_labels, ACCURACY - drop)).sum(axis=1)
    return float(found @ binom.pmf(at_release[:, 0], num_test_rows, ACCURACY))


def labels_needed(num_test_rows: int, drop: float, *, most: int = 10_000) -> int | None:
    """Return the fewest labels, by tens, with which an audit finds a drop with the power that it should have;
    None: more than `most`.
    """
    few, many = 0, most // 10
    if audit_power(most, num_test_rows, drop) < POWER:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (
            (few, middle) if audit_power(10 * middle, num_test_rows, drop) >= POWER else (middle, many)
        )
    return 10 * many


def fixed_sample(num_worlds: int, num_test_rows: int, seed: int) -> float:
    """Return the false alarms of the usual interval at each look, for comparison: it holds at one look
    alone.
    """
    rng = np.random.default_rng(seed)
    least = np.array(
        [_release_low(right, num_test_rows) for right in rng.binomial(num_test_rows, ACCURACY, num_worlds)]
    )
    num = LABELS_A_DAY * np.arange(1, NUM_LOOKS + 1)
    accuracy = rng.binomial(LABELS_A_DAY, ACCURACY, (num_worlds, NUM_LOOKS)).cumsum(axis=1) / num
    high = accuracy + 1.96 * np.sqrt(np.maximum(accuracy * (1 - accuracy), 1e-9) / num)
    return float((high < least[:, None]).any(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_quality", description=__doc__)
    parser.add_argument("--worlds", type=int, default=NUM_WORLDS)
    worlds = parser.parse_args().worlds
    print(
        "| test rows | drop | found in a year | labels: median | labels: 90% of worlds"
        " |\n|---|---|---|---|---|"
    )
    for num_test_rows in TEST_ROWS:
        nulls = {
            "none": simulate(worlds, num_test_rows, 0.0, 1),
            "none, best of 5 released": simulate(worlds, num_test_rows, 0.0, 2, candidates=5),
        }
        for name, found in nulls.items():
            print(f"| {num_test_rows:,} | {name} | {found.rate:.3f} |  |  |")
        print(
            f"| {num_test_rows:,} | none, by a fixed-sample interval |"
            f" {fixed_sample(worlds, num_test_rows, 3):.3f} |  |  |"
        )
        for drop in DROPS:
            found = simulate(worlds, num_test_rows, drop, 4)
            shown = [
                f"{value:,.0f}" if np.isfinite(value) else "not found"
                for value in np.quantile(found.num_labels, (0.5, 0.9), method="higher")
            ]
            print(f"| {num_test_rows:,} | {drop:g} | {found.rate:.3f} | {' | '.join(shown)} |")
    powers = " | ".join(f"found with {num} labels" for num in AUDIT_LABELS)
    usual = f"with {AUDIT_LABELS[0]} by a two-sample test"
    print(
        f"\n| test rows | drop | {powers} | {usual} | labels for a power of {POWER:g}"
        f" |\n|---|---|{'---|' * len(AUDIT_LABELS)}---|---|"
    )
    for num_test_rows in TEST_ROWS:
        for drop in (0.0, *DROPS):
            chances = [
                *(audit_power(num, num_test_rows, drop) for num in AUDIT_LABELS),
                two_sample_power(AUDIT_LABELS[0], num_test_rows, drop),
            ]
            found = " | ".join(f"{chance:.3f}" for chance in chances)
            needed = labels_needed(num_test_rows, drop) if drop else None
            print(
                f"| {num_test_rows:,} | {drop or 'none'} | {found} |"
                f" {'' if not drop else 'not found' if needed is None else f'{needed:,}'} |"
            )


if __name__ == "__main__":
    main()
