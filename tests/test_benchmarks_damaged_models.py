"""The benchmark of damaged models: each damage is stopped by the gate that is meant for it."""

import pytest

from benchmarks.damaged_models import DAMAGES, stopped
from benchmarks.release_gate import Trained, train

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train("licence rules by kind", 1_500, 4)


@pytest.mark.parametrize(
    "damage",
    ["the two commonest labels swapped", "the two rarest labels swapped", "guesses on the longest texts"],
)
@pytest.mark.heavy
def test_a_damaged_model_is_stopped_each_time(trained: Trained, damage: str) -> None:
    found = stopped(trained, DAMAGES[damage], 3, 200, "non_inferiority")
    assert (found["no_slice_is_worse"], found["promoted"]) == (1, 0)


@pytest.mark.heavy
def test_one_that_was_not_damaged_is_not(trained: Trained) -> None:
    found = stopped(trained, DAMAGES["none"], 5, 200, "non_inferiority")
    assert found.get("no_slice_is_worse", 0) <= 0.2 and "forgetting_is_within_budget" not in found
