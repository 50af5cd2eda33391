"""The verdict on a candidate: which gates its evaluation passes, and why.

The evaluation workload computes it once and stores it with the report; all others read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.gates import ChampionRule, GateContext, GateResult
from fullft_assets.evaluation.gates.measurements import TEST_SET_IS_LARGE_ENOUGH
from fullft_assets.evaluation.seed_noise import SeedNoise
from fullft_assets.planning.worth import Worth
from fullft_assets.settings import ReleaseSettings
from fullft_assets.task import GATES

#: File of an `evaluation_report` with its verdict.
DECISION = "decision.json"

Answer = Literal["promote", "keep", "inconclusive", "insufficient_data"]
#: An answer as the report's headline.
HEADLINES: dict[Answer, str] = {
    "promote": "PROMOTE",
    "keep": "KEEP CHAMPION",
    "inconclusive": "INCONCLUSIVE",
    "insufficient_data": "INSUFFICIENT DATA",
}


class ReleaseVerdict(BaseModel):
    """Whether to promote a candidate, with the result of every gate.

    Attributes:
        has_champion: there was one to keep.
        seed_runs: trainings that the noise of seeds was taken from; 0: it is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Answer
    has_champion: bool
    seed_runs: int = 0
    reasons: list[GateResult]

    @property
    def promote(self) -> bool:
        """Whether every gate passed."""
        return self.answer == "promote"

    @property
    def headline(self) -> str:
        """The answer in capitals."""
        return "DO NOT PROMOTE" if self.answer == "keep" and not self.has_champion else HEADLINES[self.answer]

    @property
    def failures_first(self) -> list[GateResult]:
        """The gates: those that say no, then the undecided ones, then those that passed."""
        return sorted(self.reasons, key=lambda reason: (reason.passed, reason.is_undecided))

    @property
    def sentence(self) -> str:
        """The verdict in words; whether the model was promoted is the release's to say (see
        `release.decision`).
        """
        failing = [
            reason.text
            for reason in sorted(self.reasons, key=lambda reason: reason.is_undecided)
            if not reason.passed
        ]
        opening = {
            "promote": "Every gate passed",
            "keep": "Not promoted",
            "inconclusive": "Not promoted, since the test set cannot decide",
            "insufficient_data": "Not promoted, since there is not enough test data to decide",
        }[self.answer]
        return f"{opening}: {'; '.join(failing)}." if failing else f"{opening}."


def verdict(
    evaluation: Evaluation,
    settings: ReleaseSettings,
    rule: ChampionRule = "superiority",
    seed_noise: SeedNoise | None = None,
    worth: Worth | None = None,
) -> ReleaseVerdict:
    """Judge a candidate: it is promoted if, and only if, every gate passes.

    Args:
        rule: what it must show against the champion.
        seed_noise: None: unknown; the comparison with the champion is one of two models then, not of their
            recipes.
        worth: whether the gain is worth its cost; a gate where `planning.if_not_justified` is block.
    """
    context = GateContext(evaluation, settings, rule, seed_noise, worth)
    results = [gate.judge(context) for gate in GATES.all().values() if gate.is_asked_for(settings)]
    reasons = [result for result in results if result is not None]
    return ReleaseVerdict(
        answer=_answer(reasons),
        has_champion=evaluation.has_champion,
        seed_runs=0 if seed_noise is None else seed_noise.num_runs,
        reasons=reasons,
    )


def write_verdict(folder: Path, decision: ReleaseVerdict) -> None:
    """Write the verdict into the folder of an `evaluation_report`."""
    (folder / DECISION).write_text(decision.model_dump_json(indent=1), encoding="utf-8")


def read_verdict(folder: Path) -> ReleaseVerdict:
    """Return the verdict from the folder of an `evaluation_report`."""
    return ReleaseVerdict.model_validate_json((folder / DECISION).read_bytes())


def _answer(reasons: list[GateResult]) -> Answer:
    failing = [reason for reason in reasons if not reason.passed]
    if not failing:
        return "promote"
    if any(reason.gate == TEST_SET_IS_LARGE_ENOUGH.name for reason in failing):
        return "insufficient_data"
    return "inconclusive" if all(reason.is_undecided for reason in failing) else "keep"
