"""Gates that compare a measurement of the candidate with a limit."""

from __future__ import annotations

from pydantic import Field

from fullft_assets.evaluation.gates.base import Gate, GateContext, GateResult
from fullft_assets.evaluation.titles import title
from fullft_assets.settings import PlanningSettings, ReleaseSettings
from fullft_assets.settings.base import Float, Settings


class TestSetIsLargeEnough(Gate):
    """Without enough test groups the verdict is insufficient data."""

    # No tests, whatever pytest takes the name for.
    __test__ = False
    name = "test_set_is_large_enough"
    is_always = True
    description = "There are enough test groups to decide on."
    advice = "deliver documents of more groups"

    def judge(self, context: GateContext) -> GateResult:
        evaluation, needed = context.evaluation, context.settings.min_effective_groups
        passed = evaluation.effective_groups >= needed
        metric = title(evaluation.primary_metric)
        text = (
            f"{metric} is known to ±{evaluation.score.half_width:.3f} on {evaluation.num_test_groups:,} test"
            f" groups; they tell as much as {evaluation.effective_groups:,.0f} of equal weight, {needed:,g}"
            " are needed (release.min_effective_groups)"
        )
        if evaluation.measurable_labels == 0:
            passed = False
            text = f"no label has enough test groups for {metric} to be measured"
        return self.result(
            passed,
            text if passed else f"{text}; deliver more groups",
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
        metric, least = context.evaluation.primary_metric, context.settings.min_score
        score = context.evaluation.score.estimate
        passed = score >= least
        text = (
            f"{title(metric)} {score:.3f} {'reaches' if passed else 'is below'} {least:.3f}"
            " (release.min_score)"
        )
        return self.result(passed, text, {metric: score})


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

    def judge(self, context: GateContext) -> GateResult:
        forgetting = context.evaluation.forgetting
        if forgetting is None:
            text = "forgetting was not measured, as there is no general text (snapshot.general)"
            return self.result(True, text)
        budget = forgetting.budget
        since = (
            f" over {forgetting.num_trainings} trainings since the base model"
            if forgetting.num_trainings > 1
            else ""
        )
        if forgetting.num_unmeasured:
            since += f", {forgetting.num_unmeasured} of which did not measure it"
        text = f"the {forgetting.what} rose by {forgetting.rise:+.3f}{since}"
        numbers = {"rise": forgetting.rise}
        if budget is None:
            return self.result(True, f"{text}; no budget is set (training.max_general_rise)", numbers)
        passed = forgetting.rise <= budget
        text += (
            f", {'within' if passed else 'more than'} the budget of {budget:.3f} (training.max_general_rise)"
        )
        return self.result(passed, text, numbers)


class CalibrationOptions(Settings):
    """`release.gates: {is_calibrated: {max_error: 0.05}}`."""

    max_error: Float = Field(gt=0, le=1, description="Maximum expected calibration error.")


class IsCalibrated(Gate):
    """The expected calibration error against a limit, where `release.gates` asks for it."""

    name = "is_calibrated"
    description = "Predicted probabilities match observed frequencies."
    advice = (
        "train fewer epochs, or remove is_calibrated from release.gates if nobody reads the probabilities"
    )
    tasks = ("classification",)
    options = CalibrationOptions

    def judge(self, context: GateContext) -> GateResult:
        error, limit = context.evaluation.calibration_error, self.options_of(context.settings).max_error
        if error is None:
            return self.result(False, "calibration error is not measured for this task")
        passed = error <= limit
        text = f"calibration error {error:.3f} {'is within' if passed else 'exceeds'} {limit:.3f}"
        return self.result(passed, f"{text} (release.gates)", {"calibration_error": error})


class FullFinetuningIsJustified(Gate):
    """It is a check where `planning.usd_per_point` is set, and a gate where `planning.if_not_justified` is
    block.
    """

    name = "full_finetuning_is_justified"
    description = "The gain over the best baseline is worth training and a year of retraining."
    advice = (
        "use the best baseline, or retrain less often (planning.retrains_a_year) on a cheaper machine"
        " (`fullft plan`)"
    )

    is_always = True

    def has_check(self, release: ReleaseSettings, planning: PlanningSettings) -> bool:
        return planning.usd_per_point is not None

    def judge(self, context: GateContext) -> GateResult | None:
        worth = context.worth
        if worth is None or not worth.blocks:
            return None
        return self.result(False, worth.sentence.rstrip("."), is_undecided=worth.answer == "inconclusive")


TEST_SET_IS_LARGE_ENOUGH = TestSetIsLargeEnough()
SCORE_IS_SUFFICIENT = ScoreIsSufficient()
FORGETTING_IS_WITHIN_BUDGET = ForgettingIsWithinBudget()
IS_CALIBRATED = IsCalibrated()
FULL_FINETUNING_IS_JUSTIFIED = FullFinetuningIsJustified()
