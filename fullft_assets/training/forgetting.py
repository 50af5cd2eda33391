"""Forgetting: the score of a model on the general set before, during and after training, and the budget for
its rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from fullft_assets.checkpoint import GENERAL_MEASURES, score_before
from fullft_assets.errors import DivergenceError
from fullft_assets.jobs.progress import Listener
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import StepLog
from fullft_assets.training.guards import GuardFinding

#: Name of the rule in incidents and in the step log.
RULE = "max_general_rise"
_FIX = (
    "snapshot.replay, training.distillation, a lower learning_rate or training.wise_ft make a model forget"
    " less"
)


@dataclass(frozen=True)
class ForgettingBudget:
    """The scores on the general set over a run, and the rise that is allowed.

    Attributes:
        measure: of a model, not wrapped: one of `GENERAL_MEASURES` by its name; nothing where there is no
            general set.
    """

    measure: Callable[[PreTrainedModel, Listener], dict[str, float]]
    max_rise: float | None

    def score_before(
        self, model: PreTrainedModel, log: StepLog, listener: Listener
    ) -> dict[str, float] | None:
        """Score the weights that training begins with and log the score as step 0, unless an earlier segment
        did.

        Returns:
            The new line, or None.
        """
        if score_before(log.lines) is not None:
            return None
        found = ranks.from_first(self.measure(model, listener))
        if not found:
            return None
        (value,) = found.values()
        if not math.isfinite(value):
            raise DivergenceError(
                "snapshot.general: the outputs of the weights that training begins with are not finite on it"
            )
        line = {"step": 0, **found}
        log.append(line)
        return line

    def score(self, model: PreTrainedModel, log: StepLog, listener: Listener) -> dict[str, float]:
        """Return the score of a model and `general_rise`, its rise over the score before training; nothing
        without a general set.
        """
        found = self.measure(model, listener)
        if not found:
            return {}
        before = score_before(log.lines)
        assert before is not None, "the general set is scored before training"
        return {**found, "general_rise": next(iter(found.values())) - before}

    def is_spent(self, scores: Mapping[str, Any]) -> bool:
        """Return whether a model with these scores has forgotten more than the budget; a score that is not a
        number is over it.
        """
        return self.max_rise is not None and not scores["general_rise"] <= self.max_rise

    def finding(self, step: int, scores: Mapping[str, Any]) -> GuardFinding:
        """Return the finding for a spent budget, which ends the run."""
        name = next(name for name in GENERAL_MEASURES if name in scores)
        rise = f"{scores['general_rise']:.4f} above the one before training"
        reason = f"{name} {scores[name]:.4f} is {rise}, max_general_rise is {self.max_rise:g}"
        return GuardFinding(RULE, "stop", step, step, reason, _FIX)

    def over_budget(self, step: int) -> DivergenceError:
        """Return the error of a run without any scored weights within the budget."""
        return DivergenceError(
            f"no scored weights, up to step {step:,}, are within training.max_general_rise"
            f" ({self.max_rise:g}); {_FIX}; or raise it"
        )
