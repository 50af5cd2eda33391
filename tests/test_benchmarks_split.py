"""The benchmark of the split on one small real set: what it counts, and what may never happen."""

import pytest

from benchmarks.split import licences, measure

pytestmark = pytest.mark.quick


@pytest.mark.heavy
def test_rare_labels_move_groups_and_nothing_goes_back_to_training() -> None:
    found = measure(licences("name")[:3_000], num_rows=600, num_batches=3, seeds=[1, 2])
    assert (len(found.refused), sum(found.refused), sum(found.refused_by_hash)) == (6, 0, 6)
    assert found.num_to_training == 0
    assert min(found.moved) > 0 and sum(found.untested) == 0
