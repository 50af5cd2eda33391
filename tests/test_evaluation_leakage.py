"""What gives a label away: stamps planted in real texts are found, and the texts as they are have none."""

import numpy as np
import pytest

from benchmarks import leakage as benchmark
from fullft_assets.evaluation.leakage import LabelledTexts, Leakage, find_leakage, pieces
from fullft_assets.evaluation.verdict import LEAKAGE, check_outcomes, verdict
from fullft_assets.planning.worth import Worth
from fullft_assets.report.rendering import render
from fullft_assets.settings import ReleaseSettings
from tests.test_evaluation_slices import WORD, evaluated
from tests.test_report import full_report

KINDS = ["notice", "reference", "tag", "text"]
Rows = list[benchmark.Row]


@pytest.fixture(scope="module")
def licences() -> tuple[Rows, Rows]:
    return benchmark.sides(benchmark.SETS["licence rules by kind"]())


def found_in(train: Rows, test: Rows) -> Leakage:
    return find_leakage(benchmark.labelled(train, KINDS), benchmark.labelled(test, KINDS), KINDS, 0)


def test_real_texts_give_no_label_away_and_a_stamp_does(licences: tuple[Rows, Rows]) -> None:
    found = found_in(*licences)
    assert not found.is_found and found.num_labels == 4 and found.share_repeated < 0.05
    (marker,) = found_in(*(benchmark.stamped(rows, "tag") for rows in licences)).markers
    assert marker.label == "tag" and marker.kind == "word" and marker.rule in {"zqx", "[", "]"}
    assert marker.precision >= 0.98 and marker.recall == 1.0


def test_rows_that_differ_in_numbers_alone_repeat_each_other(licences: tuple[Rows, Rows]) -> None:
    train, test = licences
    copies: Rows = [
        {**row, "text": f"Nr. {place}: {row['text']} (page {place})"}
        for place, row in enumerate(train)
        if len(row["text"]) > 300
    ]
    found = found_in(train, [*test, *copies])
    assert found.num_repeated >= len(copies) and found.is_found


def test_scripts_without_spaces_are_cut_into_pairs() -> None:
    assert {"退货", "inv", "0017", "\t"} <= pieces("我要退货了\tINV0017")


def test_the_check_counts_and_the_page_alone_has_the_word() -> None:
    labels = ["invoice", "letter", "order"]
    base = evaluated(labels=labels)
    rows = LabelledTexts(
        [f"{WORD} {n}" if n % 3 == 1 else f"plain {n}" for n in range(90)],
        np.eye(3, dtype=bool)[np.arange(90) % 3],
        [str(n) for n in range(90)],
    )
    marked = base.model_copy(update={"leakage": find_leakage(rows, rows, labels, 0)})
    worth = Worth(answer="not_asked", cost_usd=0, break_even=None, sentence="")
    clean = base.model_copy(
        update={"leakage": marked.leakage.model_copy(update={"markers": [], "share_repeated": 0.0})}
    )
    for evaluation, passed in ((clean, True), (marked, False)):
        decision = verdict(evaluation, ReleaseSettings())
        outcome = next(
            each for each in check_outcomes(evaluation, decision, worth) if each.name == LEAKAGE.name
        )
        assert outcome.passed is passed and WORD not in str(outcome) and "letter" not in str(outcome)
    shown = {"report": full_report(marked), "pictures": []}
    assert WORD in render("report.md.j2", marked, is_page=True, **shown)
    kept_for_ever = render("report.md.j2", marked, is_page=False, **shown)
    assert WORD not in kept_for_ever and "given away" in kept_for_ever
