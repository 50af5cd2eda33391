"""A field that ties rows together is suggested for examples.group; dates, ids and annotators are not."""

from __future__ import annotations

import pytest

from benchmarks import group_candidates as real
from fullft_assets.checking.group_candidates import candidates

pytestmark = pytest.mark.quick


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["licences", pytest.param("docstrings", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("with_labels", [pytest.param(True, marks=pytest.mark.heavy), False])
def test_the_true_field_is_suggested_and_no_decoy(name: str, with_labels: bool) -> None:
    found = real.SETS[name]()
    suggested = real.suggested(real.sample(found, seed=3)[:800], with_labels=with_labels)
    assert set(found.true) <= set(suggested)
    assert not {*found.decoys, *real.MEANINGLESS} & set(suggested)


def test_rows_without_a_value_and_equal_texts_count_for_nothing() -> None:
    rows = real.sample(real.SETS["licences"](), seed=3)[:600]
    texts = [row["text"] for row in rows] * 2
    pair = [str(n) for n in range(600)] * 2
    assert candidates(texts, [""] * 1_200, {"pair": pair}) == [], "of equal texts the snapshot keeps one"
    assert (
        candidates(texts[:600], [""] * 600, {"empty": [None] * 600, "few": [str(n % 19) for n in range(600)]})
        == []
    )
