"""The rows over the cap of their group, predicted from a sample of the groups."""

from __future__ import annotations

import random

import pytest

from fullft_assets.settings import SnapshotSettings
from fullft_assets.snapshot.expected_loss import rows_over_cap
from fullft_assets.store.hashing import unit_hash
from tests import project as projects

pytestmark = pytest.mark.quick

SETTINGS = SnapshotSettings()


@pytest.fixture(scope="module")
def groups() -> list[str]:
    """The licence expressions of 20,000 real rules: most are rare, a few have hundreds of rules."""
    return [row["expression"] for row in projects.licence_rows(20_000)]


def lost(groups: list[str], seed: int) -> int:
    """Count the rows over the cap one by one."""
    taken: dict[str, int] = {}
    for group in groups:
        if unit_hash(seed, "split", group) < SETTINGS.test_share + SETTINGS.validation_share:
            taken[group] = taken.get(group, 0) + 1
    return sum(max(0, size - SETTINGS.max_heldout_rows_per_group) for size in taken.values())


def test_of_all_rows_the_number_is_exact(groups: list[str]) -> None:
    for seed in range(5):
        assert rows_over_cap(groups, SETTINGS, seed) == lost(groups, seed) > 0


def test_of_a_sample_it_is_near(groups: list[str]) -> None:
    for seed in range(5):
        sample = random.Random(seed).sample(groups, 2_000)
        assert rows_over_cap(sample, SETTINGS, seed, len(groups)) == pytest.approx(lost(groups, seed), rel=0.2)


def test_where_each_group_comes_once_nothing_is_lost() -> None:
    assert rows_over_cap([f"patient {n}" for n in range(1_000)], SETTINGS, 1, 1_000_000) == 0
    assert rows_over_cap([None] * 1_000, SETTINGS, 1, 1_000_000) == 0
    assert rows_over_cap([], SETTINGS, 1) == 0
