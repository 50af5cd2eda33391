"""The checks of the evaluation report: one for each gate of a release, and whether the test set is large enough."""

from __future__ import annotations

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.comparison import MAX_HALF_WIDTH
from fullft_assets.evaluation.titles import title
from fullft_assets.evaluation.verdict import ReleaseVerdict
from fullft_assets.settings import ReleaseSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec

CHECKS = (
    CheckSpec("beats_baselines", "The tuned model is better than every baseline, by more than chance."),
    CheckSpec("beats_champion", "The tuned model is better than the champion."),
    CheckSpec("score_is_sufficient", "The primary metric reaches release.min_score."),
    CheckSpec("test_set_is_large_enough", "The confidence interval is narrow enough to decide on."),
)
#: With release.max_calibration_error.
CALIBRATION = CheckSpec("is_calibrated", "Predicted probabilities match observed frequencies.")


def specs(settings: ReleaseSettings) -> tuple[CheckSpec, ...]:
    """Return the checks that there are under these settings."""
    return CHECKS if settings.max_calibration_error is None else (*CHECKS, CALIBRATION)


def outcomes(found: Evaluation, decision: ReleaseVerdict) -> list[CheckOutcome]:
    """Return the outcomes of the checks; a red one is a warning, since keeping the champion is a normal outcome."""
    numbers = _gate_numbers(found)
    gates = [
        CheckOutcome(
            name=reason.gate, passed=reason.passed, severity="warn", description=reason.text, metadata=numbers.get(reason.gate, {})
        )
        for reason in decision.reasons
    ]
    half_width = found.score.half_width
    enough = half_width <= MAX_HALF_WIDTH
    description = f"{title(found.primary_metric)} is known to ±{half_width:.3f} on {found.num_test_groups:,} groups"
    if not enough:
        description += f", wanted is ±{MAX_HALF_WIDTH}; deliver more groups or raise snapshot.test_share"
    metadata = {"half_width": half_width, "num_test_rows": found.num_test_rows, "num_test_groups": found.num_test_groups}
    return [
        *gates,
        CheckOutcome(name="test_set_is_large_enough", passed=enough, severity="warn", description=description, metadata=metadata),
    ]


def _gate_numbers(found: Evaluation) -> dict[str, dict[str, float]]:
    """Return what the UI plots over evaluations beside each gate."""
    gain, over_champion = found.gain_over_best_baseline, found.gain_over_champion
    numbers = {
        "beats_baselines": {"gain": gain.estimate, "gain_low": gain.low, "gain_high": gain.high},
        "score_is_sufficient": {found.primary_metric: found.score.estimate},
    }
    if found.calibration_error is not None:
        numbers["is_calibrated"] = {"calibration_error": found.calibration_error}
    if over_champion is not None:
        numbers["beats_champion"] = {"gain": over_champion.estimate, "gain_low": over_champion.low, "gain_high": over_champion.high}
    return numbers
