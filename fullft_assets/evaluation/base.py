"""What every evaluation has, whatever the task."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod

from fullft_assets.evaluation.comparison import Justification
from fullft_assets.evaluation.intervals import Interval, Record
from fullft_assets.evaluation.titles import CHAMPION, FINETUNED
from fullft_assets.task import TASKS

VERSION = "3"


class Evaluation(Record, ABC):
    """What a release and a report need to know of an evaluation; `scores` and `gains` go metric -> system.

    Attributes:
        metrics: names of the metrics that a table of the systems shows, in order.
        gains: fine-tuned minus each other system.
        calibration_error: None: not measured for this task.
    """

    task: str
    metrics: list[str]
    primary_metric: str
    confidence: float
    resamples: int
    num_test_rows: int
    num_test_groups: int
    baselines: list[str]
    has_champion: bool
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    justification: Justification
    calibration_error: float | None = None

    @property
    @abstractmethod
    def limits(self) -> list[str]:
        """Known limits that the measurements show, one sentence each."""

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """What a table of the systems shows: metric -> system -> interval. A system without an interval could not be measured so."""
        return {metric: self.scores.get(metric, {}) for metric in self.metrics}

    @property
    def headline(self) -> dict[str, float]:
        """The fine-tuned model's metrics, each with the ends of its interval."""
        found: dict[str, float] = {}
        for metric, values in self.columns.items():
            if FINETUNED in values:
                score = values[FINETUNED]
                found |= {metric: score.estimate, f"{metric}_low": score.low, f"{metric}_high": score.high}
        return found

    @property
    def score(self) -> Interval:
        """The fine-tuned model's primary metric."""
        return self.scores[self.primary_metric][FINETUNED]

    @property
    def gain_over_best_baseline(self) -> Interval:
        """Primary metric, fine-tuned minus the best baseline."""
        return self.justification.gain

    @property
    def gain_over_champion(self) -> Interval | None:
        """Primary metric, fine-tuned minus champion; None without a champion."""
        return self.gains[self.primary_metric].get(CHAMPION)


def read_evaluation(text: str | bytes) -> Evaluation:
    """Return an evaluation that was stored as JSON, in the type of its task."""
    found = json.loads(text)
    return TASKS.get(found["task"]).evaluation_type().model_validate(found)
