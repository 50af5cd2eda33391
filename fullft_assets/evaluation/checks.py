"""The checks of the evaluation report: one for each gate of a release, and whether labels are given away."""

from __future__ import annotations

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.gates.measurements import FULL_FINETUNING_IS_JUSTIFIED
from fullft_assets.evaluation.leakage import Leakage
from fullft_assets.evaluation.verdict import ReleaseVerdict
from fullft_assets.planning.worth import Worth
from fullft_assets.settings import PlanningSettings, ReleaseSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import GATES

#: No gate: it says that scores may be too good, of every system alike.
LEAKAGE = CheckSpec(
    "labels_are_not_given_away",
    "No word or length alone gives a label away, and few test rows repeat training rows.",
)


def specs(
    settings: ReleaseSettings, planning: PlanningSettings, *, has_row_labels: bool = True
) -> tuple[CheckSpec, ...]:
    """Return the checks under these settings.

    Args:
        has_row_labels: whether each row has labels of its own, so that a word may give one away.
    """
    gates = [gate.spec for gate in GATES.all().values() if gate.has_check(settings, planning)]
    return (*gates, LEAKAGE) if has_row_labels else tuple(gates)


def outcomes(evaluation: Evaluation, decision: ReleaseVerdict, worth: Worth) -> list[CheckOutcome]:
    """Return the outcomes of the checks; a red one is a warning, since keeping the champion is a normal
    outcome.
    """
    checks = [
        _warning(reason.gate, reason.passed, reason.text, reason.numbers)
        for reason in decision.reasons
        if reason.gate != FULL_FINETUNING_IS_JUSTIFIED.name
    ]
    if evaluation.leakage is not None:
        checks.append(_leakage(evaluation.leakage))
    if worth.is_asked:
        costs = {"cost_usd": worth.cost_usd, "break_even": worth.break_even or 0.0}
        name = FULL_FINETUNING_IS_JUSTIFIED.name
        checks.append(_warning(name, worth.answer == "yes", worth.sentence, costs))
    return checks


def _leakage(leakage: Leakage) -> CheckOutcome:
    """Names neither words nor labels: descriptions are kept in an event log."""
    text = (
        f"one word or length gives away {len(leakage.markers) or 'none'} of {leakage.num_labels} labels with"
        f" enough test groups; {leakage.share_repeated:.1%} of the test groups repeat training rows"
    )
    numbers = {"num_markers": len(leakage.markers), "share_repeated": leakage.share_repeated}
    description = f"{text}; the report names them" if leakage.is_found else text
    return _warning(LEAKAGE.name, not leakage.is_found, description, numbers)


def _warning(name: str, passed: bool, description: str, numbers: dict[str, int | float]) -> CheckOutcome:
    return CheckOutcome(name=name, passed=passed, severity="warn", description=description, metadata=numbers)
