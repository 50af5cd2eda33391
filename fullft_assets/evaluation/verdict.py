"""The verdict on a candidate: which gates its evaluation passes, and why; and the checks that show it.

The evaluation workload computes it once and stores it with the report; all others read it.
"""

from pathlib import Path
from typing import Literal

from fullft_assets.evaluation.base import Evaluation, SeedNoise
from fullft_assets.evaluation.gates import (
    BEATS_CHAMPION,
    TEST_SET_IS_LARGE_ENOUGH,
    ChampionRule,
    GateContext,
    GateResult,
)
from fullft_assets.planning.worth import Worth
from fullft_assets.record import StrictRecord
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import GATES

#: Where `planning.usd_per_point` is set. It refuses nothing, so it is no gate.
_JUSTIFIED = CheckSpec(
    "full_finetuning_is_justified",
    "The gain over the best baseline is worth training and a year of retraining.",
)
#: File of an `evaluation_report` with its verdict.
DECISION = "decision.json"

Answer = Literal["promote", "baseline", "keep", "inconclusive", "insufficient_data"]
#: An answer as the report's headline.
HEADLINES: dict[Answer, str] = {
    "promote": "PROMOTE",
    "baseline": "PROMOTE A BASELINE",
    "keep": "KEEP CHAMPION",
    "inconclusive": "INCONCLUSIVE",
    "insufficient_data": "INSUFFICIENT DATA",
}


class ReleaseVerdict(StrictRecord):
    """Whether to promote a candidate, with the result of every gate.

    Attributes:
        has_champion: there was one to keep.
        seed_runs: trainings that the noise of seeds was taken from; 0: it is assumed.
        choice: which system is chosen, and why; else empty.
    """

    answer: Answer
    has_champion: bool
    seed_runs: int = 0
    choice: str = ""
    reasons: list[GateResult]

    @property
    def promote(self) -> bool:
        """Whether every gate passed."""
        return self.answer == "promote"

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better than the champion by more than chance."""
        return any(
            # Earlier reports have no `low_at_look`.
            reason.numbers.get("low_at_look", reason.numbers.get("gain_low", 0.0)) > 0
            for reason in self.reasons
            if reason.gate == BEATS_CHAMPION.name
        )

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
        """The verdict in words; whether the model was promoted is decided later, by `release.decision`."""
        failing = [
            reason.text
            for reason in sorted(self.reasons, key=lambda reason: reason.is_undecided)
            if not reason.passed
        ]
        opening = {
            "promote": "Every gate passed",
            "baseline": "The fine-tuned model is not promoted" if failing else "Its gates passed as well",
            "keep": "Not promoted",
            "inconclusive": "Not promoted, since the test set cannot decide",
            "insufficient_data": "Not promoted, since there is not enough test data to decide",
        }[self.answer]
        sentence = f"{opening}: {'; '.join(failing)}." if failing else f"{opening}."
        return f"{self.choice} {sentence}".strip()


def verdict(
    evaluation: Evaluation,
    settings: ReleaseSettings,
    rule: ChampionRule = "superiority",
    seed_noise: SeedNoise | None = None,
    look: int = 1,
) -> ReleaseVerdict:
    """Judge a candidate: it is promoted if, and only if, every gate passes.

    Args:
        rule: what it must show against the champion.
        seed_noise: None: the comparison with the champion is one of two models, not of their recipes.
        look: see `GateContext.look`.
    """
    context = GateContext(evaluation, settings, rule, seed_noise, look)
    reasons = [gate.judge(context) for gate in GATES.all().values() if gate.is_asked_for(settings)]
    return ReleaseVerdict(
        answer=_answer(reasons),
        has_champion=evaluation.has_champion,
        seed_runs=0 if seed_noise is None else seed_noise.num_runs,
        reasons=reasons,
    )


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


def check_specs(settings: UseCaseSettings) -> tuple[CheckSpec, ...]:
    """Return the checks under these settings."""
    specs = [gate.spec for gate in GATES.all().values() if gate.has_check(settings)]
    return (*specs, *([_JUSTIFIED] if settings.planning.usd_per_point is not None else []))


def check_outcomes(decision: ReleaseVerdict, worth: Worth, settings: UseCaseSettings) -> list[CheckOutcome]:
    """Return the outcomes of the checks under these settings; a red one is a warning, since keeping the
    champion is a normal outcome.
    """
    names = {spec.name for spec in check_specs(settings)}
    checks = [
        _warning(reason.gate, reason.passed, reason.text, reason.numbers)
        for reason in decision.reasons
        if reason.gate in names
    ]
    if worth.is_asked:
        costs = {"cost_usd": worth.cost_usd, "break_even": worth.break_even or 0.0}
        checks.append(_warning(_JUSTIFIED.name, worth.answer == "yes", worth.sentence, costs))
    return checks


def _warning(name: str, has_passed: bool, description: str, numbers: dict[str, int | float]) -> CheckOutcome:
    return CheckOutcome(
        name=name, passed=has_passed, severity="warn", description=description, metadata=numbers
    )
