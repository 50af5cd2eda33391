"""Gates that compare the candidate with other systems."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

from fullft_assets.evaluation.base import Evaluation
from fullft_assets.evaluation.gates.base import Gate, GateContext, GateResult
from fullft_assets.evaluation.intervals import Gain
from fullft_assets.evaluation.seed_noise import SeedNoise
from fullft_assets.evaluation.slices import SliceScore
from fullft_assets.evaluation.titles import ANCHOR, CHAMPION, title
from fullft_assets.settings import ReleaseSettings

Relation = Literal["better", "worse", "equal", "undecided"]


class BeatsBaselines(Gate):
    """Each baseline must be beaten, so no correction for their number is due (intersection-union test, Berger
    1982).
    """

    name = "beats_baselines"
    is_always = True
    description = "The tuned model is better than every baseline, by more than chance."
    advice = (
        "use the best baseline, which costs less, or change the recipe (training) or the data before you"
        " train again"
    )

    def judge(self, context: GateContext) -> GateResult:
        evaluation = context.evaluation
        gains = {name: evaluation.gains[evaluation.primary_metric][name] for name in evaluation.baselines}
        hardest = min(gains, key=lambda name: gains[name].low)
        gain, bar = gains[hardest], context.settings.min_gain_over_baselines
        passed = gain.low > bar
        text = (
            f"gain over {title(hardest)} is {gain.estimate:+.3f}, its interval starts at {gain.low:+.3f}, "
            f"{'above' if passed else 'not above'} {bar:+.3f} (release.min_gain_over_baselines)"
        )
        is_undecided = not passed and gain.high > bar
        if is_undecided:
            text += _what_would_decide(gain, gain, bar, evaluation.num_test_groups)
        best = evaluation.gain_over_best_baseline
        numbers = {"gain": best.estimate, "gain_low": best.low, "gain_high": best.high}
        return self.result(passed, text, numbers, is_undecided=is_undecided)


class BeatsChampion(Gate):
    """Superiority after a change of recipe, non-inferiority after new data (docs/decisions/0020)."""

    name = "beats_champion"
    is_always = True
    description = (
        "The tuned model is better than the champion; after new data, not worse by what the test set can"
        " show."
    )
    advice = "keep the champion; change the recipe (training), or train again when there are more documents"

    def judge(self, context: GateContext) -> GateResult:
        evaluation, seed_noise = context.evaluation, context.seed_noise
        compared = {CHAMPION: evaluation.gain_over_champion, ANCHOR: evaluation.gain_over_anchor}
        of_rows = {name: gain for name, gain in compared.items() if gain is not None}
        gains = {name: _claim(gain, seed_noise, evaluation.confidence) for name, gain in of_rows.items()}
        if CHAMPION not in gains:
            return self.result(True, "no champion yet")
        if context.rule == "superiority":
            result = self._is_superior(gains[CHAMPION], of_rows[CHAMPION], context)
        else:
            results = [
                self._is_not_inferior(name, gain, of_rows[name], context) for name, gain in gains.items()
            ]
            refused = (each for each in results if not each.passed and not each.is_undecided)
            result = next(refused, None) or min(results, key=lambda each: each.passed)
        noise = (
            "" if seed_noise is None else f", the noise of seeds of {seed_noise.num_runs} trainings included"
        )
        gain = of_rows[CHAMPION]
        numbers = {
            "gain": gain.estimate,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "detectable": gain.detectable,
        }
        return result.model_copy(update={"text": result.text + noise, "numbers": numbers})

    def _is_superior(self, gain: Gain, of_rows: Gain, context: GateContext) -> GateResult:
        bar = context.settings.min_gain_over_champion
        passed = gain.low > bar
        is_undecided = not passed and gain.high > max(bar, 0.0)
        text = (
            f"gain over the champion is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}),"
            f" {relation(gain, context.settings.max_tolerable_loss)}: its interval is"
            f" {'above' if passed else 'not above'} {bar:+.3f} (release.min_gain_over_champion)"
        )
        if is_undecided:
            text += _what_would_decide(gain, of_rows, bar, context.evaluation.num_test_groups)
        return self.result(passed, text, is_undecided=is_undecided)

    def _is_not_inferior(self, name: str, gain: Gain, of_rows: Gain, context: GateContext) -> GateResult:
        """Non-inferior at the smallest loss that the test set can show, and at no more than is tolerable. A
        loss that the owner accepts (release.min_gain_over_champion below 0) passes, too.
        """
        evaluation, tolerable = context.evaluation, context.settings.max_tolerable_loss
        margin = min(gain.detectable, tolerable)
        text = (
            f"gain over the {title(name)} is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}),"
            f" {relation(gain, tolerable)}"
        )
        accepted = min(context.settings.min_gain_over_champion, 0.0)
        if gain.low > accepted:
            accepting = f", above {accepted:+.3f} (release.min_gain_over_champion)" if accepted else ""
            return self.result(True, text + accepting)
        if gain.high < 0:
            return self.result(False, text)
        passed = gain.excludes_loss(margin, evaluation.confidence)
        text += f": after new data it {'loses less' if passed else 'may lose more'} than {margin:.3f}"
        if margin == gain.detectable:
            text += ", what this test set can show"
        else:
            text += " (release.max_tolerable_loss)"
            if not passed:
                needed = _needed(gain, of_rows, tolerable, evaluation.num_test_groups) or "more test groups"
                text += f"; this test set finds losses from {gain.detectable:.3f}, {needed} would decide"
        return self.result(passed, text, is_undecided=not passed)


class NoSliceIsWorse(Gate):
    """Its sentence names no slice: check descriptions are kept in an event log, and a slice may be called
    what a label or a client is called.
    """

    name = "no_slice_is_worse"
    is_always = True
    description = (
        "On no slice of the test rows is the model worse than the champion, else than the best baseline."
    )
    advice = (
        "look at the worst slices under Where it is wrong: deliver more documents like these, or check their"
        " labels"
    )

    def judge(self, context: GateContext) -> GateResult:
        slices, least = context.evaluation.slices, context.settings.min_effective_groups
        numbers = (
            {"lowest_gain": min(each.gain.estimate for each in slices.found)}
            if slices is not None and slices.found
            else {}
        )
        tested = [] if slices is None else slices.tested(least)
        if slices is None or not tested:
            text = (
                f"no slice has {least:g} groups of equal weight (release.min_effective_groups), so none was"
                " tested"
            )
            return self.result(True, text, numbers)
        worse = worse_slices(context.evaluation, context.settings)
        text = (
            f"{len(worse) or 'none'} of {len(tested)} slices {'is' if len(worse) == 1 else 'are'} worse than"
            f" the {title(slices.rival)} by more than chance"
        )
        if worse:
            kinds = Counter(each.kind for each in worse)
            listed = ", ".join(f"{count} by {kind}" for kind, count in kinds.items())
            text += f": {listed}; the report names them"
        return self.result(not worse, text, numbers)


def worse_slices(evaluation: Evaluation, settings: ReleaseSettings) -> list[SliceScore]:
    """Return the slices on which the model is worse than its rival; a loss that the owner accepts on the
    whole is none on a slice.
    """
    slices = evaluation.slices
    if slices is None:
        return []
    bar = settings.min_gain_over_champion if slices.rival == CHAMPION else settings.min_gain_over_baselines
    return slices.worse(settings.min_effective_groups, evaluation.confidence, min(bar, 0.0))


def relation(gain: Gain, margin: float) -> Relation:
    """Return what the interval of a gain says; equal: it is within the margin on both sides (two one-sided
    tests, Schuirmann 1987).
    """
    if gain.low > 0:
        return "better"
    if gain.high < 0:
        return "worse"
    return "equal" if -margin < gain.low and gain.high < margin else "undecided"


def _claim(gain: Gain, seed_noise: SeedNoise | None, confidence: float) -> Gain:
    """Return a gain as one of recipes: each side was trained once, so the variance between seeds counts
    twice.
    """
    if seed_noise is None:
        return gain
    return gain.with_seed_noise(2 * seed_noise.variance, seed_noise.degrees_of_freedom, confidence)


def _what_would_decide(gain: Gain, of_rows: Gain, bar: float, num_groups: int) -> str:
    """Return the smallest difference that the test set finds, and how many groups would find one as large as
    the estimate.
    """
    text = f"; this test set finds differences from {gain.detectable:.3f}"
    needed = _needed(gain, of_rows, gain.estimate - bar, num_groups)
    if needed:
        return f"{text}, {needed} would decide on one like this"
    # Seeds vary a score by more than the choice of rows does.
    if gain.standard_error**2 > 2 * of_rows.standard_error**2:
        text += ", and no number of groups: trainings that differ by their seed differ by as much"
    return text


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
    budget = difference**2 - scale * of_seeds
    rows = scale * of_rows.standard_error**2 + gain.least_detectable * difference
    if budget <= rows / 10_000:
        return ""
    # Rounded first: 160 must not become 161.
    return f"about {math.ceil(round(num_groups * rows / budget, 6)):,} test groups"


BEATS_BASELINES = BeatsBaselines()
BEATS_CHAMPION = BeatsChampion()
NO_SLICE_IS_WORSE = NoSliceIsWorse()
