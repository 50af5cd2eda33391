"""Perturbed copies of texts, and the score on them against the score on the texts as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fullft_assets.evaluation import FINETUNED
from fullft_assets.evaluation.metrics.labels import ACCURACY
from fullft_assets.evaluation.perturbations import KINDS, perturb
from fullft_assets.evaluation.robustness import measure_robustness
from fullft_assets.evaluation.rows import one_of_each_group_first
from fullft_assets.tasks.classification import assessment
from tests import project as projects

pytestmark = pytest.mark.quick


def test_typos_swap_two_inner_letters_of_one_word_in_ten() -> None:
    texts = [row["text"] for row in projects.licence_rows(60)]
    words, changed = 0, 0
    for row, text in enumerate(texts):
        found = perturb("typos", text, f"17/{row}")
        assert found == perturb("typos", text, f"17/{row}") and sorted(found) == sorted(text)
        pairs = [(old, new) for old, new in zip(text.split(), found.split(), strict=True) if len(old) >= 4]
        words, changed = words + len(pairs), changed + sum(old != new for old, new in pairs)
    assert 0.06 < changed / words < 0.14
    assert any(perturb("typos", text, "1") != perturb("typos", text, "2") for text in texts)


def test_half_a_text_ends_with_a_whole_word() -> None:
    assert perturb("first_half", "one two three four", "") == "one two"
    assert perturb("first_half", "one twothree", "") == "one"
    assert perturb("first_half", "unbreakable", "") == "unbrea"
    assert perturb("first_half", "x", "") == "x"


def test_one_row_of_each_group_comes_first() -> None:
    groups = ["a"] * 50 + ["b", "c"]
    order = one_of_each_group_first(groups, 3)
    assert {groups[row] for row in order[:3]} == {"a", "b", "c"} and sorted(order) == list(range(52))
    assert order == one_of_each_group_first(groups, 3) != one_of_each_group_first(groups, 4)


def test_the_change_is_that_of_the_same_rows_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 400)
    clean = np.where(rng.random(400) < 0.9, truth, (truth + 1) % 3)
    worse = np.where(rng.random(400) < 0.3, rng.integers(0, 3, 400), clean)

    def of(predicted: np.ndarray):
        return replace(assessment.of_labels(truth, predicted, 3), labels=["a", "b", "c"])

    perturbed = {"typos": {FINETUNED: (of(worse), 120)}, "upper_case": {FINETUNED: (of(clean), 0)}}
    sampling = {"resamples": 200, "confidence": 0.95, "seed": 1}
    found = measure_robustness(
        {FINETUNED: of(clean)}, perturbed, [str(row // 2) for row in range(400)], ACCURACY, **sampling
    )
    assert found is not None and found.num_rows == 400 and found.num_groups == 200
    typos, upper = found.found
    assert found.clean[FINETUNED].estimate == pytest.approx((clean == truth).mean())
    assert typos.change.estimate == pytest.approx((worse == truth).mean() - (clean == truth).mean())
    assert typos.change.high < 0 and upper.change.estimate == 0
    assert measure_robustness({FINETUNED: of(clean)}, perturbed, ["g"] * 400, ACCURACY, **sampling) is None


def test_every_kind_leaves_a_text() -> None:
    for kind in KINDS:
        assert perturb(kind, "Permission is hereby granted", "k").strip()
