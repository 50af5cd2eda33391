"""What training makes a model forget: its score on the general set before, on the way and at the end, and the budget for its rise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from fullft_assets.engine import ranks
from fullft_assets.engine.checkpoints import StepLog
from fullft_assets.engine.guards import Finding
from fullft_assets.engine.recipe import Listener
from fullft_assets.errors import DivergenceError
from fullft_assets.training import GENERAL_MEASURES, score_before

#: Name of the rule in incidents and in the step log.
RULE = "max_general_rise"
#: What helps against it.
_MEND = "snapshot.replay, training.distillation, a lower learning_rate or training.wise_ft make a model forget less"


@dataclass(frozen=True)
class Forgetting:
    """The scores on the general set over a run.

    Attributes:
        measure: of a model, not wrapped: one of `GENERAL_MEASURES` by its name; nothing where there is no general set.
        max_rise: the budget; None: no limit.
    """

    measure: Callable[[PreTrainedModel, Listener], dict[str, float]]
    max_rise: float | None

    def score_before(self, model: PreTrainedModel, log: StepLog, listener: Listener) -> dict[str, float] | None:
        """Score the weights that training begins with and log it as step 0, unless the log of an earlier leg has it.

        Returns:
            The new line, or None.
        """
        if score_before(log.lines) is not None:
            return None
        found = ranks.of_first(self.measure(model, listener))
        if not found:
            return None
        (value,) = found.values()
        if not math.isfinite(value):
            raise DivergenceError("snapshot.general: the outputs of the weights that training begins with are not finite on it")
        line = {"step": 0, **found}
        log.append(line)
        return line

    def score(self, model: PreTrainedModel, log: StepLog, listener: Listener) -> dict[str, float]:
        """Return the score of a model and `general_rise`, how far it lies above the one before training; nothing without a general set."""
        found = self.measure(model, listener)
        before = score_before(log.lines)
        return {**found, "general_rise": next(iter(found.values())) - before} if found else {}

    def is_spent(self, scores: dict[str, float]) -> bool:
        """Return whether a model with these scores has forgotten more than it may; a score that is no number has."""
        return self.max_rise is not None and not scores["general_rise"] <= self.max_rise

    def finding(self, step: int, scores: dict[str, float]) -> Finding:
        """Return what the run's incidents say of a spent budget."""
        name = next(name for name in GENERAL_MEASURES if name in scores)
        reason = f"{name} {scores[name]:.4f} lies {scores['general_rise']:.4f} above the one before training, max_general_rise is {self.max_rise:g}"
        return Finding(RULE, "stop", step, step, reason, _MEND)

    def nothing_left(self, step: int) -> DivergenceError:
        """Return the error of a run without any scored weights within the budget."""
        return DivergenceError(
            f"no scored weights, up to step {step:,}, are within training.max_general_rise ({self.max_rise:g}); {_MEND}; or raise it"
        )
