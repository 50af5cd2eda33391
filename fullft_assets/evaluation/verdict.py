"""The verdict on a candidate: which gates its evaluation passes, each with its reason."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fullft_assets.evaluation import Evaluation, title
from fullft_assets.settings import ReleaseSettings


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(_Record):
    """What one gate said; `gate` is also the name of the check on `evaluation_report`."""

    gate: str
    passed: bool
    text: str


class Verdict(_Record):
    """Whether to promote, with every gate's reason."""

    promote: bool
    reasons: list[Reason]

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        failing = [reason.text for reason in self.reasons if not reason.passed]
        return f"Not promoted: {'; '.join(failing)}." if failing else "Promoted: every gate passed."


def verdict(evaluation: Evaluation, settings: ReleaseSettings) -> Verdict:
    """Judge a candidate: it is promoted if, and only if, every gate passes."""
    reasons = [_beats_baselines(evaluation, settings), _beats_champion(evaluation, settings), _score_is_sufficient(evaluation, settings)]
    if settings.max_calibration_error is not None:
        reasons.append(_is_calibrated(evaluation.calibration_error, settings.max_calibration_error))
    return Verdict(promote=all(reason.passed for reason in reasons), reasons=reasons)


def _beats_baselines(evaluation: Evaluation, settings: ReleaseSettings) -> Reason:
    gain, best = evaluation.gain_over_best_baseline, title(evaluation.justification.best_baseline)
    passed = gain.low > settings.min_gain_over_baselines
    text = (
        f"gain over {best} is {gain.estimate:+.3f}, its interval starts at {gain.low:+.3f}, "
        f"{'above' if passed else 'not above'} {settings.min_gain_over_baselines:+.3f} (release.min_gain_over_baselines)"
    )
    return Reason(gate="beats_baselines", passed=passed, text=text)


def _beats_champion(evaluation: Evaluation, settings: ReleaseSettings) -> Reason:
    gain = evaluation.gain_over_champion
    if gain is None:
        return Reason(gate="beats_champion", passed=True, text="no champion yet")
    significantly_worse = gain.high < 0
    passed = gain.estimate > settings.min_gain_over_champion and not significantly_worse
    text = f"gain over the champion is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    if significantly_worse:
        text += ", significantly worse"
    else:
        text += f", {'above' if passed else 'not above'} {settings.min_gain_over_champion:+.3f} (release.min_gain_over_champion)"
    return Reason(gate="beats_champion", passed=passed, text=text)


def _score_is_sufficient(evaluation: Evaluation, settings: ReleaseSettings) -> Reason:
    score = evaluation.score.estimate
    passed = score >= settings.min_score
    found = "reaches" if passed else "is below"
    text = f"{title(evaluation.primary_metric)} {score:.3f} {found} {settings.min_score:.3f} (release.min_score)"
    return Reason(gate="score_is_sufficient", passed=passed, text=text)


def _is_calibrated(error: float | None, limit: float) -> Reason:
    passed = error is not None and error <= limit
    found = "is not measured for this task" if error is None else f"{error:.3f} {'is within' if passed else 'exceeds'} {limit:.3f}"
    return Reason(gate="is_calibrated", passed=passed, text=f"calibration error {found} (release.max_calibration_error)")
