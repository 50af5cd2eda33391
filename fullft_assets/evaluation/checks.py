"""The checks of the evaluation report: one for each gate of a release, and whether labels are given away."""

from __future__ import annotations

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.leakage import Leakage
from fullft_assets.evaluation.verdict import (
    BEATS_BASELINES,
    BEATS_CHAMPION,
    FORGETTING_IS_WITHIN_BUDGET,
    FULL_FINETUNING_IS_JUSTIFIED,
    IS_CALIBRATED,
    NO_SLICE_IS_WORSE,
    SCORE_IS_SUFFICIENT,
    TEST_SET_IS_LARGE_ENOUGH,
    ReleaseVerdict,
)
from fullft_assets.planning.worth import Worth
from fullft_assets.settings import PlanningSettings, ReleaseSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec

CHECKS = (
    TEST_SET_IS_LARGE_ENOUGH,
    BEATS_BASELINES,
    BEATS_CHAMPION,
    SCORE_IS_SUFFICIENT,
    FORGETTING_IS_WITHIN_BUDGET,
    NO_SLICE_IS_WORSE,
)
#: No gate: it says that scores may be too good, of every system alike.
LEAKAGE = CheckSpec(
    "labels_are_not_given_away",
    "No word, length or name alone gives a label away, and few test rows repeat training rows.",
)


def specs(
    settings: ReleaseSettings, planning: PlanningSettings, *, has_row_labels: bool = True
) -> tuple[CheckSpec, ...]:
    """Return the checks that there are under these settings, of rows with labels of their own or without."""
    found = (*CHECKS, LEAKAGE) if has_row_labels else CHECKS
    found = found if settings.max_calibration_error is None else (*found, IS_CALIBRATED)
    return found if planning.usd_per_point is None else (*found, FULL_FINETUNING_IS_JUSTIFIED)


def outcomes(found: Evaluation, decision: ReleaseVerdict, worth: Worth) -> list[CheckOutcome]:
    """Return the outcomes of the checks; a red one is a warning, since keeping the champion is a normal
    outcome.
    """
    numbers = _gate_numbers(found)
    made = [
        CheckOutcome(
            name=reason.gate,
            passed=reason.passed,
            severity="warn",
            description=reason.text,
            metadata=numbers.get(reason.gate, {}),
        )
        for reason in decision.reasons
        if reason.gate != FULL_FINETUNING_IS_JUSTIFIED.name
    ]
    if found.leakage is not None:
        made.append(_leakage(found.leakage))
    if not worth.is_asked:
        return made
    costs = {"cost_usd": worth.cost_usd, "break_even": worth.break_even or 0.0}
    passed = worth.answer == "yes"
    return [
        *made,
        CheckOutcome(
            name=FULL_FINETUNING_IS_JUSTIFIED.name,
            passed=passed,
            severity="warn",
            description=worth.sentence,
            metadata=costs,
        ),
    ]


def _leakage(found: Leakage) -> CheckOutcome:
    """Names neither words nor labels: descriptions are kept in an event log."""
    markers = f"{len(found.markers) or 'none'} of {found.num_labels} labels with enough test groups"
    text = (
        f"one word, length or name gives away {markers}; {found.share_repeated:.1%} of the test groups repeat"
        " training rows"
    )
    numbers = {"num_markers": len(found.markers), "share_repeated": found.share_repeated}
    description = f"{text}; the report names them" if found.is_found else text
    return CheckOutcome(
        name=LEAKAGE.name,
        passed=not found.is_found,
        severity="warn",
        description=description,
        metadata=numbers,
    )


def _gate_numbers(found: Evaluation) -> dict[str, dict[str, float]]:
    """Return what the UI plots over evaluations beside each gate."""
    gain, over_champion = found.gain_over_best_baseline, found.gain_over_champion
    numbers = {
        TEST_SET_IS_LARGE_ENOUGH.name: {
            "effective_groups": found.effective_groups,
            "num_test_groups": found.num_test_groups,
            "num_test_rows": found.num_test_rows,
            "half_width": found.score.half_width,
        },
        BEATS_BASELINES.name: {"gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high},
        SCORE_IS_SUFFICIENT.name: {found.primary_metric: found.score.estimate},
    }
    if found.slices is not None and found.slices.found:
        numbers[NO_SLICE_IS_WORSE.name] = {
            "lowest_gain": min(each.gain.estimate for each in found.slices.found)
        }
    if found.forgetting is not None:
        numbers[FORGETTING_IS_WITHIN_BUDGET.name] = {"rise": found.forgetting.rise}
    if found.calibration_error is not None:
        numbers[IS_CALIBRATED.name] = {"calibration_error": found.calibration_error}
    if over_champion is not None:
        ends = {
            "gain": over_champion.estimate,
            "gain_low": over_champion.low,
            "gain_high": over_champion.high,
        }
        numbers[BEATS_CHAMPION.name] = {**ends, "detectable": over_champion.detectable}
    return numbers
