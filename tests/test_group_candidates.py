"""A field that ties rows together is suggested for examples.group; dates, ids and annotators are not."""

import pytest

from benchmarks import group_candidates as real
from fullft_assets.checking.sample import candidates
from fullft_assets.store import Store
from tests import project as projects

pytestmark = pytest.mark.quick


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["licences", pytest.param("docstrings", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("with_labels", [pytest.param(True, marks=pytest.mark.heavy), False])
def test_the_true_field_is_suggested_and_no_decoy(name: str, with_labels: bool) -> None:
    found = real.SETS[name]()
    suggested = real.suggested(real.sample(found, seed=3)[:800], with_labels=with_labels)
    assert set(found.true) <= set(suggested) and not {*found.decoys, *real.MEANINGLESS} & set(suggested)


def test_rows_without_a_value_and_equal_texts_count_for_nothing() -> None:
    texts = [row["text"] for row in real.sample(real.SETS["licences"](), seed=3)[:600]] * 2
    assert candidates(texts, [""] * 1_200, {"pair": [str(n) for n in range(600)] * 2}) == [], (
        "of equal texts the snapshot keeps one"
    )
    assert (
        candidates(texts[:600], [""] * 600, {"empty": [None] * 600, "few": [str(n % 19) for n in range(600)]})
        == []
    )


@pytest.mark.heavy
def test_an_ingestion_ends_with_the_field_where_no_group_is_set(project: projects.Project) -> None:
    from fullft_assets.cli.summary import data_summary

    project.deliver(
        "delivery-1.jsonl", sorted(projects.licence_rows(3_000), key=lambda row: row["expression"])[:900]
    )
    store = Store(str(project.home / "store"))
    lines = []
    for group in (None, "expression"):
        project.configure(examples={"group": group})
        lines.append([line for line in data_summary(project.use_case(), store, 1.0) if "  group" in line])
    assert lines[1] == []
    assert len(lines[0]) == 1
    assert lines[0][0].endswith("set examples.group: expression")
