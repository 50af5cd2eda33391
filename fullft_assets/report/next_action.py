"""What to do after a verdict, in one sentence."""

from __future__ import annotations

import math

from fullft_assets.evaluation import Evaluation
from fullft_assets.evaluation.verdict import (
    BEATS_BASELINES,
    BEATS_CHAMPION,
    FORGETTING_IS_WITHIN_BUDGET,
    FULL_FINETUNING_IS_JUSTIFIED,
    IS_CALIBRATED,
    NO_SLICE_IS_WORSE,
    SCORE_IS_SUFFICIENT,
    ReleaseVerdict,
)
from fullft_assets.settings import ReleaseSettings

#: By the first gate that says no.
_AFTER_NO = {
    BEATS_BASELINES.name: (
        "use the best baseline, which costs less, or change the recipe (training) or the data before you"
        " train again"
    ),
    BEATS_CHAMPION.name: (
        "keep the champion; change the recipe (training), or train again when there are more documents"
    ),
    SCORE_IS_SUFFICIENT.name: (
        "deliver more documents, above all of the weakest labels, or lower release.min_score"
    ),
    FORGETTING_IS_WITHIN_BUDGET.name: (
        "train with snapshot.replay, which costs its tokens, or with wise_ft (docs/training/forgetting.md)"
    ),
    NO_SLICE_IS_WORSE.name: (
        "look at the worst slices under Where it is wrong: deliver more documents like these, or check their"
        " labels"
    ),
    FULL_FINETUNING_IS_JUSTIFIED.name: (
        "use the best baseline, or retrain less often (retraining.max_age_days) on a cheaper machine"
        " (`fullft plan`)"
    ),
    IS_CALIBRATED.name: (
        "train fewer epochs, or allow a larger release.max_calibration_error if nobody reads the"
        " probabilities"
    ),
}


def next_action(case: str, verdict: ReleaseVerdict, evaluation: Evaluation, settings: ReleaseSettings) -> str:
    """Return what to do next."""
    if verdict.promote:
        return (
            f"Materialise champion_model, as the job {case}_model does: it makes this model the champion,"
            " unless somebody froze or rolled back the champion."
        )
    if verdict.answer == "insufficient_data":
        return (
            f"Deliver documents of {_missing_groups(evaluation, settings)} and evaluate again; or decide on"
            " less with release.min_effective_groups."
        )
    if verdict.answer == "inconclusive":
        return (
            "Deliver documents of more groups, so that the test set can decide; the sentence above says what"
            " it cannot show."
        )
    gate = next(reason.gate for reason in verdict.failures_first)
    return f"{gate} says no: {_AFTER_NO.get(gate, 'read why above, and change the recipe or the data')}."


def _missing_groups(evaluation: Evaluation, settings: ReleaseSettings) -> str:
    found, needed = evaluation.effective_groups, settings.min_effective_groups
    if not 0 < found < needed:
        return "more groups of each label"
    more = math.ceil(evaluation.num_test_groups * needed / found) - evaluation.num_test_groups
    return f"so many more groups that about {more:,} of them are test groups"
