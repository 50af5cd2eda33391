"""Scores of written answers: those of sacrebleu and by hand, with each group counted once."""

from collections.abc import Sequence

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from fullft_assets.evaluation import CHAMPION, FINETUNED
from fullft_assets.settings import UseCaseSettings
from fullft_assets.tasks.language.assessment import AnswerScores, measure_answers
from tests import project as projects

pytestmark = pytest.mark.quick

METRICS = ("exact_match", "rouge_l", "chrf")
SETTINGS = UseCaseSettings.model_validate(
    {
        "base_model": "model",
        "documents": {"path": "data"},
        "examples": {"task": "sft"},
    }
)


def texts() -> list[str]:
    return [row["text"][:150] for row in projects.licence_rows(40)]


def damaged(text: str, share: float, seed: int) -> str:
    """Return a text of which some words are gone."""
    rng = np.random.default_rng(seed)
    return " ".join(word for word in text.split() if rng.random() >= share)


def measured(truth: Sequence[str], written: dict[str, list[str]], groups: Sequence[str]) -> AnswerScores:
    return measure_answers(truth, written, groups, SETTINGS, num_too_long=0, max_new_tokens=9)


def test_scores_are_sacrebleu_s() -> None:
    truth = texts()
    written = {
        FINETUNED: [damaged(text, 0.2 * (row % 2), row) for row, text in enumerate(truth)],
        CHAMPION: [damaged(text, 0.5, row) for row, text in enumerate(truth)],
    }
    alone = measured(truth, written, [str(row) for row in range(len(truth))])
    assert set(alone.scores) == set(METRICS)
    for name, answers in written.items():
        by_sacrebleu = {
            "chrf": np.mean(
                [CHRF().sentence_score(mine, [true]).score for mine, true in zip(answers, truth, strict=True)]
            )
            / 100,
            "exact_match": np.mean(
                [mine.split() == true.split() for mine, true in zip(answers, truth, strict=True)]
            ),
        }
        for metric, value in by_sacrebleu.items():
            assert alone.scores[metric][name].estimate == pytest.approx(value), metric
    grouped = measured(truth, written, [str(min(row, 20)) for row in range(len(truth))])
    assert grouped.num_groups == 21 and grouped.effective_groups < 21
    for metric in METRICS:
        assert grouped.scores[metric][FINETUNED].estimate != pytest.approx(
            alone.scores[metric][FINETUNED].estimate
        )
        for name in written:
            score = grouped.scores[metric][name]
            assert score.low < score.estimate < score.high or metric == "exact_match"
        assert grouped.gains[metric][CHAMPION].low > 0, metric


@pytest.mark.parametrize(
    ("true", "written", "score"),
    [
        ("the cat sat on the mat", "the cat on a mat", 2 * 4 / 11),
        ("Die Größe, bitte!", "die größe", 2 * 2 / 5),
        ("许可证文本", "许可文本", 2 * 4 / 9),
        ("a b", "c d", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge_l_counts_words_of_any_script(true: str, written: str, score: float) -> None:
    found = measured([true, true], {FINETUNED: [written, written]}, ["a", "b"])
    assert found.scores["rouge_l"][FINETUNED].estimate == pytest.approx(score)


def test_answers_of_one_group_have_no_interval() -> None:
    assert (
        measure_answers(
            ["a", "b"], {FINETUNED: ["a", "b"]}, ["g", "g"], SETTINGS, num_too_long=0, max_new_tokens=9
        )
        is None
    )
