"""The verdict on a candidate: which gates its evaluation passes, and why.

The evaluation workload computes it once and stores it with the report; all others read it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fullft_assets.evaluation import Evaluation, title
from fullft_assets.settings import ReleaseSettings

#: File of an `evaluation_report` with its verdict.
DECISION = "decision.json"


class GateResult(BaseModel):
    """Result of one gate; `gate` is also the name of the check on `evaluation_report`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    passed: bool
    text: str


class ReleaseVerdict(BaseModel):
    """Whether to promote a candidate, with the result of every gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promote: bool
    reasons: list[GateResult]

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        failing = [reason.text for reason in self.reasons if not reason.passed]
        return f"Not promoted: {'; '.join(failing)}." if failing else "Promoted: every gate passed."


def verdict(evaluation: Evaluation, settings: ReleaseSettings) -> ReleaseVerdict:
    """Judge a candidate: it is promoted if, and only if, every gate passes."""
    reasons = [_beats_baselines(evaluation, settings), _beats_champion(evaluation, settings), _score_is_sufficient(evaluation, settings)]
    if settings.max_calibration_error is not None:
        reasons.append(_is_calibrated(evaluation.calibration_error, settings.max_calibration_error))
    return ReleaseVerdict(promote=all(reason.passed for reason in reasons), reasons=reasons)


def write_verdict(folder: Path, found: ReleaseVerdict) -> None:
    """Write the verdict into the folder of an `evaluation_report`."""
    (folder / DECISION).write_text(found.model_dump_json(indent=1), encoding="utf-8")


def read_verdict(folder: Path) -> ReleaseVerdict:
    """Return the verdict from the folder of an `evaluation_report`."""
    return ReleaseVerdict.model_validate_json((folder / DECISION).read_bytes())


def _beats_baselines(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    gain, best = evaluation.gain_over_best_baseline, title(evaluation.justification.best_baseline)
    passed = gain.low > settings.min_gain_over_baselines
    text = (
        f"gain over {best} is {gain.estimate:+.3f}, its interval starts at {gain.low:+.3f}, "
        f"{'above' if passed else 'not above'} {settings.min_gain_over_baselines:+.3f} (release.min_gain_over_baselines)"
    )
    return GateResult(gate="beats_baselines", passed=passed, text=text)


def _beats_champion(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    gain = evaluation.gain_over_champion
    if gain is None:
        return GateResult(gate="beats_champion", passed=True, text="no champion yet")
    significantly_worse = gain.high < 0
    passed = gain.estimate > settings.min_gain_over_champion and not significantly_worse
    text = f"gain over the champion is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    if significantly_worse:
        text += ", significantly worse"
    else:
        text += f", {'above' if passed else 'not above'} {settings.min_gain_over_champion:+.3f} (release.min_gain_over_champion)"
    return GateResult(gate="beats_champion", passed=passed, text=text)


def _score_is_sufficient(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    score = evaluation.score.estimate
    passed = score >= settings.min_score
    found = "reaches" if passed else "is below"
    text = f"{title(evaluation.primary_metric)} {score:.3f} {found} {settings.min_score:.3f} (release.min_score)"
    return GateResult(gate="score_is_sufficient", passed=passed, text=text)


def _is_calibrated(error: float | None, limit: float) -> GateResult:
    passed = error is not None and error <= limit
    found = "is not measured for this task" if error is None else f"{error:.3f} {'is within' if passed else 'exceeds'} {limit:.3f}"
    return GateResult(gate="is_calibrated", passed=passed, text=f"calibration error {found} (release.max_calibration_error)")
