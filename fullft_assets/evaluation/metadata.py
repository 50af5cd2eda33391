"""Metadata of the evaluation report."""

from typing import Any, Self

from pydantic import model_validator

from fullft_assets.evaluation.titles import FINETUNED
from fullft_assets.store.metadata import Metadata


class EvaluationMetadata(Metadata):
    """Metadata of `evaluation_report`.

    Attributes:
        verdict: whether the candidate is promoted, in words.
        justification: whether full fine-tuning was worth it, in words.
        worth: whether the gain is worth its cost: yes, no, inconclusive or not_asked.
        worth_sentence: the reason for `worth`.
        cost_usd: US dollars for training and a year of retraining.
        num_test_rows_left_out: test rows that a compared model had learned from.
        answer: promote, keep, inconclusive or insufficient_data.
        effective_groups: how many groups of equal weight the primary metric rests on.
        candidate: the system that was judged.
        ships: reference of the report on the baseline that becomes champion in its place.
        incumbent: reference of the champion that it was compared with. None: there was none.
        anchor: reference of the last champion that was better, where it was compared with that, too.
        seed_runs: references of the reports that the noise of seeds was taken from.
        looks: references of the reports on candidates that were judged on these test rows before, see
            `release.JudgedAgainst`.
        scores: system -> metric -> estimate, of the systems beside the candidate.
        measured: METRIC, METRIC_low and METRIC_high of the candidate, and what the task adds.
    """

    spread_field = "measured"
    verdict: str
    justification: str
    answer: str
    promote: bool
    justified: bool
    worth: str = "not_asked"
    worth_sentence: str = ""
    cost_usd: float = 0.0
    primary_metric: str
    metrics: list[str]
    num_test_rows: int
    num_test_groups: int
    effective_groups: float
    num_test_rows_left_out: int
    best_baseline: str
    gain_over_best_baseline: float
    gain_over_best_baseline_low: float
    gain_over_best_baseline_high: float
    gain_over_champion: float | None = None
    candidate: str = FINETUNED
    checkpoint: str
    ships: str | None = None
    incumbent: str | None = None
    anchor: str | None = None
    seed_runs: list[str] = []
    looks: list[str] = []
    scores: dict[str, dict[str, float]] = {}
    measured: dict[str, Any]

    @model_validator(mode="after")
    def _read_scores_of_older_reports(self) -> Self:
        """Fill `scores` from `measured`, in which older reports have SYSTEM_METRIC."""
        for name, value in ({} if self.scores else self.measured).items():
            endings = [metric for metric in self.metrics if name.endswith(f"_{metric}")]
            for metric in sorted(endings, key=len)[-1:] if name not in self.metrics else []:
                self.scores.setdefault(name.removesuffix(f"_{metric}"), {})[metric] = value
        return self

    @property
    def systems(self) -> list[str]:
        """The systems beside the candidate that have a primary score."""
        return [system for system, scores in self.scores.items() if self.primary_metric in scores]

    def score(self, system: str | None, metric: str) -> float | None:
        """Return a system's score, or None where it has none; system None: the candidate."""
        return self.measured.get(metric) if system is None else self.scores.get(system, {}).get(metric)
