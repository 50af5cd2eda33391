"""The benchmark of forgetting: which recipe its row shows, and when its goal is met."""

import math

import pytest

from benchmarks import forgetting
from benchmarks.table import render


def run(**ways: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {"plain": {"rise": 2.0, "gain": 1.0}} | {
        name: {"rise": rise, "gain": gain} for name, (rise, gain) in ways.items()
    }


def test_the_row_shows_the_recipe_that_forgets_least_of_those_that_learn_enough_with_every_seed() -> None:
    runs = [run(replay=(0.6, 0.97), held=(0.1, 0.99)), run(replay=(0.5, 0.96), held=(0.1, 0.9))]
    row = forgetting.row_of(runs, {"old": 3.0, "new": 5.0})
    assert row.details["best"] == "replay"
    assert row.ratio == pytest.approx(0.3)
    assert row.met
    assert "+0.550 nats" in render(
        [row]
    ) and "held: rise +0.100 (5% to 5% of plain's), gain 0.945 (90.0% to 99.0%)" in render([row])


def test_one_seed_that_forgets_more_or_learns_less_is_enough_to_miss_it() -> None:
    assert not forgetting.row_of(
        [run(replay=(0.6, 1.0)), run(replay=(0.8, 1.0))], {"old": 3.0, "new": 5.0}
    ).met
    row = forgetting.row_of([run(replay=(0.1, 1.0)), run(replay=(0.1, 0.94))], {"old": 3.0, "new": 5.0})
    assert not row.met and math.isinf(row.ratio)
    assert not row.details["keeps_enough"]
