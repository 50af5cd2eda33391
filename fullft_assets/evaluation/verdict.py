"""The verdict on a candidate: which gates its evaluation passes, and why.

The evaluation workload computes it once and stores it with the report; all others read it.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fullft_assets.evaluation import Evaluation, title
from fullft_assets.evaluation.forgetting import Forgetting
from fullft_assets.evaluation.intervals import Gain
from fullft_assets.evaluation.seed_noise import SeedNoise
from fullft_assets.evaluation.slices import SliceScore
from fullft_assets.evaluation.titles import ANCHOR, CHAMPION
from fullft_assets.planning.worth import Worth
from fullft_assets.settings import ReleaseSettings
from fullft_assets.store.checks import CheckSpec

TEST_SET_IS_LARGE_ENOUGH = CheckSpec("test_set_is_large_enough", "There are enough test groups to decide on.")
BEATS_BASELINES = CheckSpec(
    "beats_baselines", "The tuned model is better than every baseline, by more than chance."
)
BEATS_CHAMPION = CheckSpec(
    "beats_champion",
    "The tuned model is better than the champion; after new data, not worse by what the test set can show.",
)
SCORE_IS_SUFFICIENT = CheckSpec("score_is_sufficient", "The primary metric reaches release.min_score.")
FORGETTING_IS_WITHIN_BUDGET = CheckSpec(
    "forgetting_is_within_budget",
    "The model lost no more on general text than it may, over all trainings since the base model.",
)
NO_SLICE_IS_WORSE = CheckSpec(
    "no_slice_is_worse",
    "On no slice of the test rows is the model worse than the champion, else than the best baseline.",
)
#: With release.max_calibration_error.
IS_CALIBRATED = CheckSpec("is_calibrated", "Predicted probabilities match observed frequencies.")
#: With planning.usd_per_point.
FULL_FINETUNING_IS_JUSTIFIED = CheckSpec(
    "full_finetuning_is_justified",
    "The gain over the best baseline is worth training and a year of retraining.",
)
#: File of an `evaluation_report` with its verdict.
DECISION = "decision.json"

ChampionRule = Literal["superiority", "non_inferiority"]
Relation = Literal["better", "worse", "equal", "undecided"]
Answer = Literal["promote", "keep", "inconclusive", "insufficient_data"]
#: An answer as the report's headline.
HEADLINES: dict[Answer, str] = {
    "promote": "PROMOTE",
    "keep": "KEEP CHAMPION",
    "inconclusive": "INCONCLUSIVE",
    "insufficient_data": "INSUFFICIENT DATA",
}


class GateResult(BaseModel):
    """Result of one gate; `gate` is also the name of the check on `evaluation_report`.

    Attributes:
        is_undecided: it did not pass, but more test groups could show that it should.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    passed: bool
    text: str
    is_undecided: bool = False


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
        rule: what it must show against the champion where `release.champion_rule` is auto.
        seed_noise: None: unknown; the comparison with the champion is one of two models then, not of their
            recipes.
        worth: whether the gain is worth its cost; a gate where `planning.if_not_justified` is block.
    """
    reasons = [_test_set_is_large_enough(evaluation, settings), _beats_baselines(evaluation, settings)]
    reasons.append(_beats_champion(evaluation, settings, rule, seed_noise))
    reasons.append(_score_is_sufficient(evaluation, settings))
    reasons.append(_forgetting_is_within_budget(evaluation.forgetting, settings.max_forgetting))
    reasons.append(_no_slice_is_worse(evaluation, settings))
    if settings.max_calibration_error is not None:
        reasons.append(_is_calibrated(evaluation.calibration_error, settings.max_calibration_error))
    if worth is not None and worth.blocks:
        reasons.append(
            GateResult(
                gate=FULL_FINETUNING_IS_JUSTIFIED.name,
                passed=False,
                text=worth.sentence.rstrip("."),
                is_undecided=worth.answer == "inconclusive",
            )
        )
    return ReleaseVerdict(
        answer=_answer(reasons),
        has_champion=evaluation.has_champion,
        seed_runs=0 if seed_noise is None else seed_noise.num_runs,
        reasons=reasons,
    )


def worse_slices(evaluation: Evaluation, settings: ReleaseSettings) -> list[SliceScore]:
    """Return the slices on which the model is worse than its rival; a loss that the owner accepts on the
    whole is none on a slice.
    """
    found = evaluation.slices
    if found is None:
        return []
    bar = settings.min_gain_over_champion if found.rival == CHAMPION else settings.min_gain_over_baselines
    return found.worse(settings.min_effective_groups, evaluation.confidence, min(bar, 0.0))


def relation(gain: Gain, margin: float) -> Relation:
    """Return what the interval of a gain says; equal: it lies within the margin on both sides (two one-sided
    tests, Schuirmann 1987).
    """
    if gain.low > 0:
        return "better"
    if gain.high < 0:
        return "worse"
    return "equal" if -margin < gain.low and gain.high < margin else "undecided"


def write_verdict(folder: Path, found: ReleaseVerdict) -> None:
    """Write the verdict into the folder of an `evaluation_report`."""
    (folder / DECISION).write_text(found.model_dump_json(indent=1), encoding="utf-8")


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


def _test_set_is_large_enough(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    found, needed = evaluation.effective_groups, settings.min_effective_groups
    text = (
        f"{title(evaluation.primary_metric)} is known to ±{evaluation.score.half_width:.3f} on"
        f" {evaluation.num_test_groups:,} test groups; they tell as much as {found:,.0f} of equal weight,"
        f" {needed:,g} are needed (release.min_effective_groups)"
    )
    passed = found >= needed
    if evaluation.measurable_labels == 0:
        passed, text = (
            False,
            f"no label has enough test groups for {title(evaluation.primary_metric)} to be measured",
        )
    return GateResult(
        gate=TEST_SET_IS_LARGE_ENOUGH.name,
        passed=passed,
        text=text if passed else f"{text}; deliver more groups",
    )


def _beats_baselines(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    """Each baseline must be beaten, so no correction for their number is due (intersection-union test, Berger
    1982).
    """
    gains = {name: evaluation.gains[evaluation.primary_metric][name] for name in evaluation.baselines}
    hardest = min(gains, key=lambda name: gains[name].low)
    gain, bar = gains[hardest], settings.min_gain_over_baselines
    passed = gain.low > bar
    text = (
        f"gain over {title(hardest)} is {gain.estimate:+.3f}, its interval starts at {gain.low:+.3f}, "
        f"{'above' if passed else 'not above'} {bar:+.3f} (release.min_gain_over_baselines)"
    )
    is_undecided = not passed and gain.high > bar
    if is_undecided:
        text += _what_would_decide(gain, gain, bar, evaluation.num_test_groups)
    return GateResult(gate=BEATS_BASELINES.name, passed=passed, text=text, is_undecided=is_undecided)


def _beats_champion(
    evaluation: Evaluation, settings: ReleaseSettings, rule: ChampionRule, seed_noise: SeedNoise | None
) -> GateResult:
    compared = {CHAMPION: evaluation.gain_over_champion, ANCHOR: evaluation.gain_over_anchor}
    of_rows = {name: gain for name, gain in compared.items() if gain is not None}
    gains = {name: _claim(gain, seed_noise, evaluation.confidence) for name, gain in of_rows.items()}
    if CHAMPION not in gains:
        return GateResult(gate=BEATS_CHAMPION.name, passed=True, text="no champion yet")
    asked = rule if settings.champion_rule == "auto" else settings.champion_rule
    noise = "" if seed_noise is None else f", the noise of seeds of {seed_noise.num_runs} trainings included"
    if asked == "superiority":
        result = _is_superior(gains[CHAMPION], of_rows[CHAMPION], settings, evaluation.num_test_groups)
    else:
        results = [
            _is_not_inferior(name, gain, of_rows[name], settings, evaluation) for name, gain in gains.items()
        ]
        result = next((each for each in results if not each.passed and not each.is_undecided), None) or min(
            results, key=lambda each: each.passed
        )
    return result.model_copy(update={"text": result.text + noise})


def _is_superior(gain: Gain, of_rows: Gain, settings: ReleaseSettings, num_groups: int) -> GateResult:
    bar = settings.min_gain_over_champion
    passed = gain.low > bar
    is_undecided = not passed and gain.high > max(bar, 0.0)
    text = (
        f"gain over the champion is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}),"
        f" {relation(gain, settings.max_tolerable_loss)}: its interval is"
        f" {'above' if passed else 'not above'} {bar:+.3f} (release.min_gain_over_champion)"
    )
    if is_undecided:
        text += _what_would_decide(gain, of_rows, bar, num_groups)
    return GateResult(gate=BEATS_CHAMPION.name, passed=passed, text=text, is_undecided=is_undecided)


def _what_would_decide(gain: Gain, of_rows: Gain, bar: float, num_groups: int) -> str:
    """Return the smallest difference that the test set finds, and what would find one as large as the
    estimate.
    """
    found = f"; this test set finds differences from {gain.detectable:.3f}"
    needed = _needed(gain, of_rows, gain.estimate - bar, num_groups)
    if needed:
        return f"{found}, {needed} would decide on one like this"
    return (
        f"{found}, and no number of groups: trainings that differ by their seed differ by as much"
        if _is_by_seed(gain, of_rows)
        else found
    )


def _is_by_seed(gain: Gain, of_rows: Gain) -> bool:
    """Return whether seeds vary a score by more than the choice of rows does."""
    return gain.standard_error**2 > 2 * of_rows.standard_error**2


def _needed(gain: Gain, of_rows: Gain, difference: float, num_groups: int) -> str:
    """Return how many test groups would find such a difference four times in five; empty where too many
    would.

    More groups lower the variance between rows alone. That between seeds stays, as each side is trained once.

    Args:
        of_rows: the gain without the noise of seeds.
    """
    of_seeds = max(0.0, gain.standard_error**2 - of_rows.standard_error**2)
    # Ten thousand times as many groups are no advice.
    if not of_rows.standard_error or difference < gain.detectable / 100:
        return ""
    # The squared detectable difference has a part from the seeds and a part from the rows; only the latter
    # shrinks with more groups. Divided one by one: the square of the smallest errors is 0.
    scale = (
        gain.detectable
        / gain.standard_error
        * ((gain.detectable - gain.least_detectable) / gain.standard_error)
    )
    left = difference**2 - scale * of_seeds
    rows = scale * of_rows.standard_error**2 + gain.least_detectable * difference
    if left <= rows / 10_000:
        return ""
    # Rounded first: 160 must not become 161.
    return f"about {math.ceil(round(num_groups * rows / left, 6)):,} test groups"


def _is_not_inferior(
    name: str, gain: Gain, of_rows: Gain, settings: ReleaseSettings, evaluation: Evaluation
) -> GateResult:
    """Non-inferior at the smallest loss that the test set can show, and at no more than is tolerable; see
    docs/decisions/0020.
    """
    tolerable = settings.max_tolerable_loss
    margin = min(gain.detectable, tolerable)
    found = (
        f"gain over the {title(name)} is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}),"
        f" {relation(gain, tolerable)}"
    )
    if gain.low > 0:
        return GateResult(gate=BEATS_CHAMPION.name, passed=True, text=found)
    if gain.high < 0:
        return GateResult(gate=BEATS_CHAMPION.name, passed=False, text=found)
    passed = gain.excludes_loss(margin, evaluation.confidence)
    text = f"{found}: after new data it {'loses less' if passed else 'may lose more'} than {margin:.3f}"
    if margin == gain.detectable:
        text += ", what this test set can show"
    else:
        text += " (release.max_tolerable_loss)"
        if not passed:
            needed = _needed(gain, of_rows, tolerable, evaluation.num_test_groups) or "more test groups"
            text += f"; this test set finds losses from {gain.detectable:.3f}, {needed} would decide"
    return GateResult(gate=BEATS_CHAMPION.name, passed=passed, text=text, is_undecided=not passed)


def _claim(gain: Gain, seed_noise: SeedNoise | None, confidence: float) -> Gain:
    """Return a gain as one of recipes: each side was trained once, so the variance between seeds counts
    twice.
    """
    if seed_noise is None:
        return gain
    return gain.with_seed_noise(2 * seed_noise.variance, seed_noise.degrees_of_freedom, confidence)


def _score_is_sufficient(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    score = evaluation.score.estimate
    passed = score >= settings.min_score
    found = "reaches" if passed else "is below"
    text = (
        f"{title(evaluation.primary_metric)} {score:.3f} {found} {settings.min_score:.3f} (release.min_score)"
    )
    return GateResult(gate=SCORE_IS_SUFFICIENT.name, passed=passed, text=text)


def _forgetting_is_within_budget(found: Forgetting | None, limit: float | None) -> GateResult:
    gate = FORGETTING_IS_WITHIN_BUDGET.name
    if found is None:
        text = "forgetting was not measured, as there is no general text (snapshot.general)"
        asked = "" if limit is None else ", though release.max_forgetting asks for it"
        return GateResult(gate=gate, passed=limit is None, text=text + asked)
    budget = found.default_budget if limit is None else limit
    since = f" over {found.num_trainings} trainings since the base model" if found.num_trainings > 1 else ""
    if found.num_unmeasured:
        since += f", {found.num_unmeasured} of which did not measure it"
    rose = f"the {found.what} rose by {found.rise:+.3f}{since}"
    if budget is None:
        return GateResult(gate=gate, passed=True, text=f"{rose}; no budget is set (release.max_forgetting)")
    passed = found.rise <= budget
    return GateResult(
        gate=gate,
        passed=passed,
        text=(
            f"{rose}, {'within' if passed else 'more than'} the budget of {budget:.3f}"
            " (release.max_forgetting)"
        ),
    )


def _no_slice_is_worse(evaluation: Evaluation, settings: ReleaseSettings) -> GateResult:
    """Names no slice: check descriptions are kept in an event log, and a slice may be called what a label or
    a client is called.
    """
    gate, found = NO_SLICE_IS_WORSE.name, evaluation.slices
    tested = [] if found is None else found.tested(settings.min_effective_groups)
    if found is None or not tested:
        text = (
            f"no slice has {settings.min_effective_groups:g} groups of equal weight"
            " (release.min_effective_groups), so none was tested"
        )
        return GateResult(gate=gate, passed=True, text=text)
    worse = worse_slices(evaluation, settings)
    kinds = Counter(each.kind for each in worse)
    said = (
        f"{', '.join(f'{count} by {kind}' for kind, count in kinds.items())}; the report names them"
        if worse
        else ""
    )
    text = (
        f"{len(worse) or 'none'} of {len(tested)} slices {'is' if len(worse) == 1 else 'are'} worse than the"
        f" {title(found.rival)} by more than chance"
    )
    return GateResult(gate=gate, passed=not worse, text=f"{text}: {said}" if said else text)


def _is_calibrated(error: float | None, limit: float) -> GateResult:
    passed = error is not None and error <= limit
    found = (
        "is not measured for this task"
        if error is None
        else f"{error:.3f} {'is within' if passed else 'exceeds'} {limit:.3f}"
    )
    return GateResult(
        gate=IS_CALIBRATED.name,
        passed=passed,
        text=f"calibration error {found} (release.max_calibration_error)",
    )
