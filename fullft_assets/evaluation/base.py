"""What every evaluation has, whatever the task."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod

from fullft_assets.escaping import quoted
from fullft_assets.evaluation.comparison import Justification
from fullft_assets.evaluation.forgetting import Forgetting
from fullft_assets.evaluation.intervals import Gain, Interval, Record, holm
from fullft_assets.evaluation.leakage import Leakage
from fullft_assets.evaluation.slices import Slices
from fullft_assets.evaluation.titles import ANCHOR, CHAMPION, FINETUNED, title
from fullft_assets.task import TASKS

VERSION = "14"
#: Fields of older evaluations that nothing reads any more.
_REMOVED_FIELDS = ("robustness",)


class Evaluation(Record, ABC):
    """What a release and a report need to know of an evaluation; `scores` and `gains` go metric -> system.

    Attributes:
        metrics: names of the metrics that a table of the systems shows, in order.
        effective_groups: how many groups of equal weight the primary metric rests on.
        measurable_labels: labels that enough groups have; macro-F1 is the mean over them. None: the task has
            no labels.
        rare_labels: the other labels that occur: unmeasured.
        rare_micro_f1: F1 of the rare labels' counts together; it has no interval.
        influences: of each test group on the fine-tuned model's primary metric, in the order of the groups'
            names, and
        groups_digest: which groups these are: two trainings on the same test groups are compared by them.
        token_cap: a document counts at most as many tokens. None: tokens are not counted.
        gains: fine-tuned minus each other system.
        calibration_error: None: not measured for this task.
        forgetting: None: no general text was given.
        slices: None: none was asked for, or the metric cannot measure them.
        leakage: what gives labels away; None: rows have no labels of their own.
    """

    task: str
    metrics: list[str]
    primary_metric: str
    confidence: float
    resamples: int
    num_test_rows: int
    num_test_groups: int
    effective_groups: float
    measurable_labels: int | None = None
    rare_labels: list[str] = []
    rare_micro_f1: float | None = None
    token_cap: int | None = None
    influences: list[float] = []
    groups_digest: str = ""
    baselines: list[str]
    has_champion: bool
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Gain]]
    justification: Justification
    calibration_error: float | None = None
    forgetting: Forgetting | None = None
    slices: Slices | None = None
    leakage: Leakage | None = None

    @property
    @abstractmethod
    def limits(self) -> list[str]:
        """Known limits that the measurements show, one sentence each."""

    @property
    def columns(self) -> dict[str, dict[str, Interval]]:
        """What a table of the systems shows: metric -> system -> interval. A system without an interval could
        not be measured so.
        """
        return {metric: self.scores.get(metric, {}) for metric in self.metrics}

    @property
    def headline(self) -> dict[str, float]:
        """The fine-tuned model's metrics, each with the ends of its interval."""
        numbers: dict[str, float] = {}
        for metric, values in self.columns.items():
            if FINETUNED in values:
                score = values[FINETUNED]
                numbers |= {metric: score.estimate, f"{metric}_low": score.low, f"{metric}_high": score.high}
        return numbers

    @property
    def score(self) -> Interval:
        """The fine-tuned model's primary metric."""
        return self.scores[self.primary_metric][FINETUNED]

    @property
    def gain_over_best_baseline(self) -> Gain:
        """Primary metric, fine-tuned minus the best baseline."""
        return self.justification.gain

    @property
    def gain_over_champion(self) -> Gain | None:
        """Primary metric, fine-tuned minus champion; None without a champion."""
        return self.gains[self.primary_metric].get(CHAMPION)

    @property
    def gain_over_anchor(self) -> Gain | None:
        """Primary metric, fine-tuned minus the first champion; None where that is the present one."""
        return self.gains[self.primary_metric].get(ANCHOR)

    @property
    def secondary_p_values(self) -> dict[str, float]:
        """P-value of each gain that does not decide, `METRIC over SYSTEM`, corrected for their number."""
        p_values = {
            f"{metric} over {name}": gain.p_value
            for metric in self.metrics
            for name, gain in self.gains.get(metric, {}).items()
        }
        decisive = {f"{self.primary_metric} over {name}" for name in (*self.baselines, CHAMPION, ANCHOR)}
        return holm({name: value for name, value in p_values.items() if name not in decisive})

    @property
    def measured_on(self) -> list[str]:
        """What the test set cannot show, one sentence each."""
        sentences = [
            f"It rests on {self.num_test_groups:,} groups that tell as much as {self.effective_groups:,.0f}"
            " of equal weight."
        ]
        rival = CHAMPION if self.has_champion else self.justification.best_baseline
        detectable = self.gains[self.primary_metric][rival].detectable
        sentences.append(
            f"A difference from the {title(rival)} below {detectable:.3f} is found less than four times in"
            " five."
        )
        if self.token_cap is not None:
            sentences.append(
                f"A test row counts at most {self.token_cap:,} tokens, so that a few long ones do not decide"
                " alone."
            )
        if self.rare_labels:
            tail = (
                ""
                if self.rare_micro_f1 is None
                else f"; together their F1 is {self.rare_micro_f1:.3f}, without an interval"
            )
            sentences.append(
                f"{len(self.rare_labels)} labels have too few test groups to be measured{tail}:"
                f" {_some(self.rare_labels)}."
            )
        return sentences


def read_evaluation(text: str | bytes) -> Evaluation:
    """Return an evaluation that was stored as JSON, in the type of its task."""
    fields = json.loads(text)
    known_fields = {name: value for name, value in fields.items() if name not in _REMOVED_FIELDS}
    return TASKS.get(fields["task"]).evaluation_type().model_validate(known_fields)


def _some(names: list[str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(map(quoted, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
