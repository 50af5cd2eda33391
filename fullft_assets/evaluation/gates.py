"""Gates of a release: each is one class, registered by name (`fullft_assets.gates`), ours and those of other
packages.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from fullft_assets.evaluation.base import Evaluation, SeedNoise
from fullft_assets.evaluation.comparison import SliceScore
from fullft_assets.evaluation.intervals import Gain
from fullft_assets.evaluation.titles import ANCHOR, CHAMPION, FINETUNED, title
from fullft_assets.record import StrictRecord
from fullft_assets.settings import ReleaseSettings, UseCaseSettings
from fullft_assets.settings.base import Float, Settings
from fullft_assets.store.checks import CheckSpec

ChampionRule = Literal["superiority", "non_inferiority"]
Relation = Literal["better", "worse", "equal", "undecided"]


class GateResult(StrictRecord):
    """Result of one gate; `gate` is also the name of the check on `evaluation_report`.

    Attributes:
        is_undecided: it did not pass, but more test groups could show that it should.
        numbers: what the UI plots over evaluations.
    """

    gate: str
    passed: bool
    text: str
    is_undecided: bool = False
    numbers: dict[str, int | float] = {}


@dataclass(frozen=True)
class GateContext:
    """What gates judge a candidate from.

    Attributes:
        rule: what the candidate must show against the champion.
        seed_noise: None: the comparison with the champion is one of two models, not of their recipes.
        look: which candidate this is that is compared with the champion, or with the baselines while there
            is none, on these test rows, from 1.
    """

    evaluation: Evaluation
    settings: ReleaseSettings
    rule: ChampionRule = "superiority"
    seed_noise: SeedNoise | None = None
    look: int = 1


class Gate(ABC):
    """One condition of a promotion. Subclass it, and register an instance by the gate's name.

    Attributes:
        name: name of the check on `evaluation_report`: what is true when it passes.
        description: the same in a sentence.
        advice: what to do when the gate says no, a clause.
        is_always: it judges each release; another gate only those that `release.gates` names it for.
        tasks: names of the tasks that it can judge; empty: all.
        options: the section that `release.gates` may give under the gate's name.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    advice: ClassVar[str]
    is_always: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type[Settings]] = Settings

    @property
    def spec(self) -> CheckSpec:
        """The declaration of the gate's check."""
        return CheckSpec(self.name, self.description)

    def is_asked_for(self, settings: ReleaseSettings) -> bool:
        """Return whether the gate judges releases under these settings."""
        return self.is_always or self.name in settings.gates

    def has_check(self, settings: UseCaseSettings) -> bool:
        """Return whether the `evaluation_report` has a check of this gate under these settings."""
        return self.is_asked_for(settings.release)

    @abstractmethod
    def judge(self, context: GateContext) -> GateResult:
        """Return whether the candidate passes and why, from the context alone."""

    def result(
        self,
        passed: bool,
        text: str,
        numbers: Mapping[str, int | float] | None = None,
        *,
        is_undecided: bool = False,
    ) -> GateResult:
        """Return a result of this gate; numbers that are not finite are left out."""
        finite = {name: value for name, value in (numbers or {}).items() if math.isfinite(value)}
        return GateResult(gate=self.name, passed=passed, text=text, is_undecided=is_undecided, numbers=finite)

    def options_of(self, settings: ReleaseSettings) -> Any:
        """Return the options that `release.gates` gives this gate."""
        return self.options.model_validate(settings.gates.get(self.name, {}))


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
        if evaluation.candidate != FINETUNED:
            return self.result(True, "asked of the fine-tuned model alone")
        look = 1 if evaluation.has_champion else context.look
        gains = {
            name: evaluation.gains[evaluation.primary_metric][name].at_look(look, evaluation.confidence)
            for name in evaluation.baselines
        }
        hardest = min(gains, key=lambda name: gains[name].low)
        gain = gains[hardest]
        bar = context.settings.min_gain_over_baselines
        is_above = gain.low > bar
        text = (
            f"gain over {title(hardest)} is {gain.estimate:+.3f}, its interval starts at {gain.low:+.3f}, "
            f"{'above' if is_above else 'not above'} {bar:+.3f} (release.min_gain_over_baselines)"
        )
        is_undecided = not is_above and gain.high > bar
        text += _look_note(look)
        if is_undecided:
            text += _what_would_decide(gain, bar, evaluation.num_test_groups)
        best = evaluation.gain_over_best_baseline.at_look(look, evaluation.confidence)
        return self.result(
            is_above,
            text,
            {"gain": best.estimate, "gain_low": best.low, "gain_high": best.high},
            is_undecided=is_undecided,
        )


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
        evaluation = context.evaluation
        seed_noise = context.seed_noise
        primary_gains = evaluation.gains[evaluation.primary_metric]
        # Each side was trained once, so the variance between seeds counts twice.
        noise = (0.0, 1) if seed_noise is None else (2 * seed_noise.variance, seed_noise.degrees_of_freedom)
        gains = {
            name: primary_gains[name].with_seed_noise(*noise, evaluation.confidence)
            for name in (CHAMPION, ANCHOR)
            if name in primary_gains
        }
        if CHAMPION not in gains:
            return self.result(True, "no champion yet")
        gain_over_champion = gains[CHAMPION]
        at_look = gain_over_champion.at_look(context.look, evaluation.confidence)
        if context.rule == "superiority":
            gain_over_champion = at_look
            result = self._is_superior(at_look, context)
        else:
            results = [self._is_not_inferior(name, gain, context) for name, gain in gains.items()]
            # The worse result of both comparisons: a refusal, else an undecided one.
            result = min(results, key=lambda result: (result.passed, result.is_undecided))
        num_runs = 0 if seed_noise is None else seed_noise.num_runs
        source = f", the noise of seeds of {num_runs} trainings included" if num_runs else ""
        numbers = {
            "gain": gain_over_champion.estimate,
            "gain_low": gain_over_champion.low,
            "gain_high": gain_over_champion.high,
            "low_at_look": at_look.low,
            "detectable": gain_over_champion.detectable,
            "look": context.look,
        }
        return result.model_copy(update={"text": result.text + source, "numbers": numbers})

    def _is_superior(self, gain: Gain, context: GateContext) -> GateResult:
        bar = context.settings.min_gain_over_champion
        is_above = gain.low > bar
        is_undecided = not is_above and gain.high > max(bar, 0.0)
        text = (
            f"gain over the champion is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}),"
            f" {relation(gain, context.settings.max_tolerable_loss)}: its interval is"
            f" {'above' if is_above else 'not above'} {bar:+.3f} (release.min_gain_over_champion)"
        )
        text += _look_note(context.look)
        if is_undecided:
            text += _what_would_decide(gain, bar, context.evaluation.num_test_groups)
        return self.result(is_above, text, is_undecided=is_undecided)

    def _is_not_inferior(self, name: str, gain: Gain, context: GateContext) -> GateResult:
        """Non-inferior at the smallest loss that the test set can show, and at no more than is tolerable. A
        loss that the owner accepts (release.min_gain_over_champion below 0) passes, too.
        """
        tolerable = context.settings.max_tolerable_loss
        margin = min(gain.detectable, tolerable)
        text = (
            f"gain over the {title(name)} is {gain.estimate:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}),"
            f" {relation(gain, tolerable)}"
        )
        bar = min(context.settings.min_gain_over_champion, 0.0)
        if gain.low > bar:
            return self.result(
                True, text + (f", above {bar:+.3f} (release.min_gain_over_champion)" if bar else "")
            )
        if gain.high < 0:
            return self.result(False, text)
        is_within = gain.excludes_loss(margin, context.evaluation.confidence)
        text += f": after new data it {'loses less' if is_within else 'may lose more'} than {margin:.3f}"
        if margin == gain.detectable:
            text += ", what this test set can show"
        else:
            text += " (release.max_tolerable_loss)"
            if not is_within:
                groups = _needed(gain, tolerable, context.evaluation.num_test_groups) or "more test groups"
                text += f"; this test set finds losses from {gain.detectable:.3f}, {groups} would decide"
        return self.result(is_within, text, is_undecided=not is_within)


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
        slices = context.evaluation.slices
        min_groups = context.settings.min_effective_groups
        if context.evaluation.candidate != FINETUNED and not context.evaluation.has_champion:
            return self.result(True, "there is no champion to compare a baseline with")
        numbers = (
            {"lowest_gain": min(score.gain.estimate for score in slices.found)}
            if slices is not None and slices.found
            else {}
        )
        worse = worse_slices(context.evaluation, context.settings)
        eroded = [
            score for score in eroded_labels(context.evaluation, context.settings) if score not in worse
        ]
        since_anchor = context.evaluation.labels_since_anchor
        lost = (
            f"; labels with too few groups to test that the {title(since_anchor.rival)} predicts rightly and"
            f" the model never does: {len(since_anchor.lost_labels)}, which the report names"
            if since_anchor is not None and since_anchor.lost_labels
            else ""
        )
        if slices is None or not (slices.tested(min_groups) or worse or eroded):
            text = (
                f"no slice has {min_groups:g} groups of equal weight (release.min_effective_groups), so none"
                " was tested"
            )
            return self.result(True, text + lost, numbers)
        text = (
            f"{len(worse) or 'none'} of {len(slices.found)} slices {'is' if len(worse) == 1 else 'are'} worse"
            f" than the {title(slices.rival)} by more than chance"
        )
        if worse:
            counts = ", ".join(
                f"{num} by {kind}" for kind, num in Counter(score.kind for score in worse).items()
            )
            text += f": {counts}; the report names them"
        if eroded and since_anchor is not None:
            text += (
                f"; rare labels that lost since the {title(since_anchor.rival)}: {len(eroded)}, which the"
                " report names"
            )
        return self.result(not worse and not eroded, text + lost, numbers)


#: How much smaller the error level of rare labels is against the champion, which every release meets: a
#: bootstrap of few groups is too sure. Of twins .08 were called worse at .05, and .035 are at .005.
_TIMES_AS_SURE = 10


def worse_slices(evaluation: Evaluation, settings: ReleaseSettings) -> list[SliceScore]:
    """Return the slices on which the model is worse than its rival; a loss that the owner accepts on the
    whole is none on a slice.
    """
    slices = evaluation.slices
    if slices is None:
        return []
    bar = settings.min_gain_over_champion if slices.rival == CHAMPION else settings.min_gain_over_baselines
    return slices.worse(settings.min_effective_groups, evaluation.confidence, min(bar, 0.0))


def eroded_labels(evaluation: Evaluation, settings: ReleaseSettings) -> list[SliceScore]:
    """Return the rare labels on which the model is worse than the last champion that was better, which may
    be the champion: what each release since then lost a little of.
    """
    since_anchor = evaluation.labels_since_anchor
    if since_anchor is None:
        return []
    min_groups = settings.min_effective_groups
    rare_labels = [score for score in since_anchor.found if score.effective_groups < min_groups]
    watched = since_anchor.model_copy(update={"found": rare_labels})
    bar = min(settings.min_gain_over_champion, 0.0)
    # Those forgotten, and of all of them those that lost by more than chance.
    level = (1 - evaluation.confidence) / (1 if since_anchor.rival == ANCHOR else _TIMES_AS_SURE)
    lost = [watched.worse(least, 1 - level, bar) for least in (min_groups, 0.0)]
    return [score for score in rare_labels if any(score in scores for scores in lost)]


def relation(gain: Gain, margin: float) -> Relation:
    """Return the relation that the interval of a gain shows; `equal`: it is within the margin on both sides
    (two one-sided tests, Schuirmann 1987).
    """
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "equal" if -margin < gain.low and gain.high < margin else "undecided"


def _look_note(look: int) -> str:
    return f"; candidate {look} on these test rows, which widens the interval" if look > 1 else ""


def _what_would_decide(gain: Gain, bar: float, num_groups: int) -> str:
    text = f"; this test set finds differences from {gain.detectable:.3f}"
    groups = _needed(gain, gain.estimate - bar, num_groups)
    return f"{text}, {groups} would decide on one like this" if groups else text


def _needed(gain: Gain, difference: float, num_groups: int) -> str:
    """Return how many test groups would find such a difference four times in five; empty where too many
    would. Training rows are taken to grow as test groups do, so that seeds vary a score by less, too.
    """
    # Ten thousand times as many groups are no advice. Rounded first: 160 must not become 161.
    return (
        f"about {math.ceil(round(num_groups * gain.times_needed(difference), 6)):,} test groups"
        if difference > gain.detectable / 100
        else ""
    )


BEATS_BASELINES = BeatsBaselines()
BEATS_CHAMPION = BeatsChampion()
NO_SLICE_IS_WORSE = NoSliceIsWorse()


class TestSetIsLargeEnough(Gate):
    """Without enough test groups the verdict is insufficient data."""

    # No tests, whatever pytest takes the name for.
    __test__ = False
    name = "test_set_is_large_enough"
    is_always = True
    description = "There are enough test groups to decide on."
    advice = "deliver documents of more groups"

    def judge(self, context: GateContext) -> GateResult:
        evaluation = context.evaluation
        min_groups = context.settings.min_effective_groups
        is_enough = evaluation.effective_groups >= min_groups
        metric = title(evaluation.primary_metric)
        text = (
            f"{metric} is known to ±{evaluation.score.half_width:.3f} on {evaluation.num_test_groups:,} test"
            f" groups; they tell as much as {evaluation.effective_groups:,.0f} of equal weight,"
            f" {min_groups:,g} are needed (release.min_effective_groups)"
        )
        if evaluation.measurable_labels == 0:
            is_enough = False
            text = f"no label has enough test groups for {metric} to be measured"
        return self.result(
            is_enough,
            text if is_enough else f"{text}; deliver more groups",
            {
                "effective_groups": evaluation.effective_groups,
                "num_test_groups": evaluation.num_test_groups,
                "num_test_rows": evaluation.num_test_rows,
                "half_width": evaluation.score.half_width,
            },
        )


class ScoreIsSufficient(Gate):
    """The fine-tuned model's primary metric against `release.min_score`."""

    name = "score_is_sufficient"
    is_always = True
    description = "The primary metric reaches release.min_score."
    advice = "deliver more documents, above all of the weakest labels, or lower release.min_score"

    def judge(self, context: GateContext) -> GateResult:
        metric = context.evaluation.primary_metric
        score = context.evaluation.score.estimate
        min_score = context.settings.min_score
        is_enough = score >= min_score
        text = (
            f"{title(metric)} {score:.3f} {'reaches' if is_enough else 'is below'} {min_score:.3f}"
            " (release.min_score)"
        )
        return self.result(is_enough, text, {metric: score})


class ForgettingIsWithinBudget(Gate):
    """The rise on general text since the base model against `training.max_general_rise`."""

    name = "forgetting_is_within_budget"
    is_always = True
    description = (
        "The model lost no more on general text than it may, over all trainings since the base model."
    )
    advice = (
        "train with snapshot.replay, which costs its tokens, or with wise_ft (docs/training/forgetting.md)"
    )

    def has_check(self, settings: UseCaseSettings) -> bool:
        return settings.snapshot.general is not None

    def judge(self, context: GateContext) -> GateResult:
        forgetting = context.evaluation.forgetting
        if forgetting is None:
            return self.result(
                True, "forgetting was not measured, as there is no general text (snapshot.general)"
            )
        since = (
            f" over {forgetting.num_trainings} trainings since the base model"
            if forgetting.num_trainings > 1
            else ""
        )
        if forgetting.num_unmeasured:
            since += f", {forgetting.num_unmeasured} of which did not measure it"
        text = f"the {forgetting.what} rose by {forgetting.rise:+.3f}{since}"
        numbers = {"rise": forgetting.rise}
        budget = forgetting.budget
        if budget is None:
            return self.result(True, f"{text}; no budget is set (training.max_general_rise)", numbers)
        is_within = forgetting.rise <= budget
        text += (
            f", {'within' if is_within else 'more than'} the budget of {budget:.3f}"
            " (training.max_general_rise)"
        )
        return self.result(is_within, text, numbers)


class CalibrationOptions(Settings):
    """`release.gates: {is_calibrated: {max_error: 0.05}}`."""

    max_error: Float = Field(gt=0, le=1, description="Maximum expected calibration error.")


class IsCalibrated(Gate):
    """Requires an expected calibration error of at most `max_error`, where `release.gates` names the gate."""

    name = "is_calibrated"
    description = "Predicted probabilities match observed frequencies."
    advice = (
        "train fewer epochs, or remove is_calibrated from release.gates if nobody reads the probabilities"
    )
    tasks = ("classification",)
    options = CalibrationOptions

    def judge(self, context: GateContext) -> GateResult:
        error = context.evaluation.calibration_error
        if error is None:
            return self.result(False, "calibration error is not measured for this task")
        limit = self.options_of(context.settings).max_error
        is_within = error <= limit
        text = f"calibration error {error:.3f} {'is within' if is_within else 'exceeds'} {limit:.3f}"
        return self.result(is_within, f"{text} (release.gates)", {"calibration_error": error})


TEST_SET_IS_LARGE_ENOUGH = TestSetIsLargeEnough()
SCORE_IS_SUFFICIENT = ScoreIsSufficient()
FORGETTING_IS_WITHIN_BUDGET = ForgettingIsWithinBudget()
IS_CALIBRATED = IsCalibrated()
