"""Slices of the test rows: what is measured, what is tested, and the gate that no slice is worse."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullft_assets import release, report
from fullft_assets.evaluation import ANCHOR, CHAMPION, FINETUNED, Comparison
from fullft_assets.evaluation.gates import GateResult, eroded_labels, worse_slices
from fullft_assets.markdown import to_html
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.classification import assessment
from tests.test_report import full_report

pytestmark = pytest.mark.quick

LABELS = ["invoice", "letter", "order"]
WORD = "zoonomiastic"


def evaluated(spoilt: str | None = None, *, champion: bool = True) -> assessment.ClassificationEvaluation:
    """Return an evaluation of rows from four sources, on one of which the candidate guesses."""
    rng, n = np.random.default_rng(3), 800
    truth, source = (
        rng.integers(0, 3, n),
        np.array([f"file-{part}" for part in "abcd"])[rng.integers(0, 4, n)],
    )

    def predicted(share: float) -> np.ndarray:
        return np.where(rng.random(n) < share, truth, rng.integers(0, 3, n))

    ours = np.where(source == spoilt, rng.integers(0, 3, n), predicted(0.85))
    systems = {FINETUNED: ours, "tfidf": predicted(0.6), **({CHAMPION: predicted(0.82)} if champion else {})}
    probabilities = {name: np.eye(3)[found] for name, found in systems.items()}
    slicing: dict[str, list[str | None]] = {
        "source": source.tolist(),
        "domain": [f"{WORD} ward" if row < 4 else None for row in range(n)],
        "language": ["en"] * n,
        "label": [None] * n,
    }
    comparison = Comparison(EvaluationSettings(), "macro_f1", 1, "classification", slicing=slicing)
    return assessment.assess(truth, probabilities, [str(row) for row in range(n)], LABELS, comparison)


def gate_of(found: assessment.ClassificationEvaluation, **changed: Any) -> GateResult:
    return next(
        reason
        for reason in release.verdict(found, ReleaseSettings(**changed)).reasons
        if reason.gate == "no_slice_is_worse"
    )


def test_a_slice_is_scored_on_its_rows_and_a_label_by_its_f1_over_all() -> None:
    found = evaluated()
    assert {(each.kind, each.name) for each in found.slices.found} == {
        *(("source", f"file-{part}") for part in "abcd"),
        *(("label", name) for name in LABELS),
    }, "one language is no slice, and four rows are too few"
    assert found.slices.num_small == {"domain": 1} and found.slices.rival == CHAMPION
    assert sum(each.num_rows for each in found.slices.found if each.kind == "source") == found.num_test_rows
    of_label = {each.name: each for each in found.slices.found if each.kind == "label"}
    for row in found.per_label:
        assert (
            of_label[row.label].score.estimate == pytest.approx(row.f1)
            and of_label[row.label].num_rows == row.support
        )
    for each in found.slices.found:
        assert each.effective_groups == pytest.approx(each.num_groups)
        assert each.score.low < each.score.estimate < each.score.high
        assert each.gain.estimate == pytest.approx(each.score.estimate - each.rival.estimate)


def test_a_good_model_passes() -> None:
    gate = gate_of(evaluated())
    assert gate.passed and gate.text.startswith("none of 7 slices ")


@pytest.mark.parametrize("champion", [True, False])
def test_a_model_that_guesses_on_one_source_is_stopped(champion: bool) -> None:
    found = evaluated("file-c", champion=champion)
    assert release.verdict(found, ReleaseSettings()).answer != "promote"
    gate = gate_of(found)
    rival = "champion" if champion else "TF-IDF + logistic regression"
    assert not gate.passed and not gate.is_undecided
    assert f" worse than the {rival} by more than chance: 1 by source" in gate.text
    assert [each.name for each in found.slices.worse(30, 0.95) if each.kind == "source"] == ["file-c"]


def test_a_loss_that_the_owner_accepts_on_the_whole_is_none_on_a_slice() -> None:
    for champion, setting in ((True, "min_gain_over_champion"), (False, "min_gain_over_baselines")):
        found = evaluated("file-c", champion=champion)
        assert not gate_of(found).passed and gate_of(found, **{setting: -1.0}).passed


@pytest.mark.parametrize("num_rows", [8, 3])
def test_a_rare_label_that_the_model_forgets_is_found_and_one_that_it_gives_less_often_is_not(
    num_rows: int, tmp_path: Path
) -> None:
    """Of labels of three rows each, which are measured together, all are forgotten, and named."""
    names = ["common", *(f"rare-{number}" for number in range(24 // num_rows))]
    truth = np.concatenate([np.zeros(300, int), np.repeat(np.arange(1, len(names)), num_rows)])
    always_common, third = np.zeros_like(truth), np.arange(len(truth)) % 3
    often, champion = np.where(third == 0, 0, truth), np.where(third == 1, 0, truth)
    slicing: dict[str, list[str | None]] = {"label": [None] * len(truth)}
    comparison = Comparison(EvaluationSettings(), "accuracy", 1, "classification", slicing=slicing)
    for predicted, passes in ((often, True), (always_common, False)):
        systems = {FINETUNED: predicted, CHAMPION: champion, "tfidf": always_common}
        probabilities = {name: np.eye(len(names))[each] for name, each in systems.items()}
        found = assessment.assess(
            truth, probabilities, [str(row) for row in range(len(truth))], names, comparison
        )
        gate = gate_of(found)
        assert gate.passed is passes, gate.text
        assert ("the model never does: 8, which the report names" in gate.text) is (
            not passes and num_rows == 3
        )
    report.write(tmp_path, full_report(found))
    named = "predicts rightly and the model never does: rare-0, rare-1, rare-2, rare-3, rare-4, rare-5,"
    assert (named in (tmp_path / "report.md").read_text()) is (num_rows == 3)


def test_a_rare_label_that_erodes_over_releases_is_seen_and_named(tmp_path: Path) -> None:
    # Each release loses three of twelve documents, which is too little to show.
    truth = np.repeat([0, 1], [300, 12])
    releases = [np.where(np.arange(312) < 312 - lost, truth, 0) for lost in (0, 3, 6, 9)]
    comparison = Comparison(
        EvaluationSettings(), "accuracy", 1, "classification", slicing={"label": [None] * 312}
    )
    rows = [str(row) for row in range(312)]

    def evaluate(**systems: np.ndarray) -> Any:
        probabilities = {
            name: np.eye(2)[predicted]
            for name, predicted in {**systems, "tfidf": np.zeros_like(truth)}.items()
        }
        return assessment.assess(truth, probabilities, rows, ["common", "rare"], comparison)

    # A champion that was better is its own anchor: in one release no less may be lost than in three.
    found = evaluate(**{FINETUNED: releases[3], CHAMPION: releases[0]})
    assert not gate_of(found).passed and "lost since the champion: 1, " in gate_of(found).text
    passed: list[tuple[bool, bool]] = []
    for champion, candidate in pairwise(releases):
        found = evaluate(**{FINETUNED: candidate, CHAMPION: champion, ANCHOR: releases[0]})
        passed.append((gate_of(found).passed, not worse_slices(found, ReleaseSettings())))
    assert passed == [(True, True), (False, True), (False, True)]
    assert "lost since the last champion that was better: 1, " in gate_of(found).text
    assert gate_of(found, min_gain_over_champion=-1.0).passed
    report.write(tmp_path, full_report(found, eroded_labels=eroded_labels(found, ReleaseSettings())))
    assert "- rare: F1 0.400 against 1.000 of it, in 12 rows" in (tmp_path / "report.md").read_text()


def test_a_slice_of_few_groups_is_not_tested() -> None:
    found = evaluated("file-c").model_copy(update={"labels_since_anchor": None})  # those are always watched
    gate = gate_of(found, min_effective_groups=400)
    assert gate.passed and "has 400 groups" in gate.text


@pytest.mark.heavy
def test_the_gate_and_the_markdown_name_no_slice_but_labels(tmp_path) -> None:
    found = evaluated("file-c")
    named = [
        each.model_copy(update={"name": f"{WORD} <b>client</b>"}) if each.kind == "source" else each
        for each in found.slices.found
    ]
    found = found.model_copy(update={"slices": found.slices.model_copy(update={"found": named})})
    report.write(tmp_path, full_report(found, worse_slices=worse_slices(found, ReleaseSettings())))
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert f"{WORD} &lt;b&gt;client&lt;/b&gt;" in page
    assert "<b>client" not in page
    assert "✗ worse" in page
    assert WORD not in markdown
    assert "| source 1 | " in markdown
    assert "label letter" in markdown
    assert WORD not in gate_of(found).text and "1 by domain have" in markdown


def test_a_field_of_any_name_leaves_the_table_whole() -> None:
    found = evaluated()
    named = [each.model_copy(update={"kind": "field a|![b](c)"}) for each in found.slices.found]
    found = found.model_copy(
        update={"slices": found.slices.model_copy(update={"found": named, "num_small": {"field ![d](e)": 2}})}
    )
    page = to_html(
        report.render("report.md.j2", found, report=full_report(found), is_page=True, pictures=[]), {}
    )
    assert "<td>field a|![b](c) file-a</td>" in page and "2 by field ![d](e) have" in page
