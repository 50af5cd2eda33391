"""What models write for test prompts, scored against the answers that were held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fullft_assets.evaluation.comparison import MAX_GROUP_WEIGHT
from fullft_assets.evaluation.intervals import Gain, Interval, Record
from fullft_assets.evaluation.metrics.base import Metric, Predictions
from fullft_assets.evaluation.resampling import measure, number_groups
from fullft_assets.evaluation.titles import FINETUNED
from fullft_assets.settings import UseCaseSettings
from fullft_assets.task import METRICS, task_of

#: In the folder of an evaluation: what each system wrote for each prompt, by the row's id.
ANSWERS = "answers.jsonl"


class AnswerScores(Record):
    """Scores of written answers; `scores` and `gains` go metric -> system.

    Attributes:
        effective_groups: how many groups of equal weight they rest on.
        num_too_long: drawn conversations that are excluded, because their held-out answer is longer than a
            model may write.
        max_new_tokens: that a model might write.
        gains: fine-tuned minus each other system.
    """

    num_answers: int
    num_groups: int
    effective_groups: float
    num_too_long: int
    max_new_tokens: int
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Gain]]


def measure_answers(
    truth: Sequence[str],
    written: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    settings: UseCaseSettings,
    *,
    num_too_long: int,
    max_new_tokens: int,
    modules: Mapping[str, Metric] | None = None,
) -> AnswerScores | None:
    """Score what each system wrote; None where the answers are of fewer than two groups, of which no interval
    can be computed.

    Args:
        written: of `finetuned` and the other systems, aligned with `truth` [n].
        modules: metrics that are not registered, by name.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        return None
    index, num_groups = number_groups(groups, len(truth))
    weights = np.array([1 / min(sizes[group], MAX_GROUP_WEIGHT) for group in groups])
    predictions = {
        name: Predictions(
            truth=list(truth), predicted=list(texts), is_right=np.zeros(len(truth), bool), weights=weights
        )
        for name, texts in written.items()
    }
    asked = settings.evaluation
    names = [*task_of(settings.examples).answer_metrics, *asked.metrics]
    metrics = {name: METRICS.get(name) for name in names} | dict(modules or {})
    measured = {
        name: measure(
            metric, predictions, index, reference=FINETUNED, confidence=asked.confidence, seed=settings.seed
        )
        for name, metric in metrics.items()
        if metric.of_answers
    }
    return AnswerScores(
        num_answers=len(truth),
        num_groups=num_groups,
        effective_groups=next(iter(measured.values())).effective_groups,
        num_too_long=num_too_long,
        max_new_tokens=max_new_tokens,
        scores={name: each.scores for name, each in measured.items()},
        gains={name: each.gains for name, each in measured.items()},
    )


def write_answers(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write what each system wrote: one JSON object a prompt, with the row's `id`, its `group`, and each
    system's text by its name.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / ANSWERS).write_text(text, encoding="utf-8")
