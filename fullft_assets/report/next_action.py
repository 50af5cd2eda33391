"""What to do after a verdict, in one sentence."""

from __future__ import annotations

import math

from fullft_assets.evaluation import Evaluation
from fullft_assets.evaluation.verdict import ReleaseVerdict
from fullft_assets.settings import ReleaseSettings
from fullft_assets.task import GATES


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
    return f"{gate} says no: {GATES.get(gate).advice}."


def _missing_groups(evaluation: Evaluation, settings: ReleaseSettings) -> str:
    effective, needed = evaluation.effective_groups, settings.min_effective_groups
    if not 0 < effective < needed:
        return "more groups of each label"
    more = math.ceil(evaluation.num_test_groups * needed / effective) - evaluation.num_test_groups
    return f"so many more groups that about {more:,} of them are test groups"
