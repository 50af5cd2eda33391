"""Scores a model while it is trained: on the validation rows, and on the general set, whose rise has a
budget.
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
from fullft_assets.models.inference import scoring
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import StepLog
from fullft_assets.training.guards import GuardFinding
from fullft_assets.training.recorder import StepRecorder

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
        scores = ranks.from_first(self.measure(model, listener))
        if not scores:
            return None
        (value,) = scores.values()
        if not math.isfinite(value):
            raise DivergenceError(
                "snapshot.general: the outputs of the weights that training begins with are not finite on it"
            )
        line = {"step": 0, **scores}
        log.append(line)
        return line

    def score(self, model: PreTrainedModel, log: StepLog, listener: Listener) -> dict[str, float]:
        """Return the score of a model and `general_rise`, its rise over the score before training; nothing
        without a general set.
        """
        scores = self.measure(model, listener)
        if not scores:
            return {}
        before = score_before(log.lines)
        assert before is not None, "the general set is scored before training"
        return {**scores, "general_rise": next(iter(scores.values())) - before}

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


class Validator:
    """Scores the weights of a training segment and records their scores.

    Args:
        score: of a model, not wrapped: its scores on the validation rows by name, `loss` among them.
    """

    def __init__(
        self,
        score: Callable[[PreTrainedModel, Listener], dict[str, float]],
        forgetting: ForgettingBudget,
        recorder: StepRecorder,
    ):
        self._score = score
        self.forgetting = forgetting
        self._recorder = recorder

    def score_before(self, model: PreTrainedModel) -> None:
        """Score the weights that training begins with on the general set, once a run."""
        recorder = self._recorder
        with scoring():
            line = self.forgetting.score_before(model, recorder.log, ranks.StopListener(recorder.progress))
        if line is not None:
            recorder.trackers.log(line)
            shown = {name: value for name, value in line.items() if name != "step"}
            recorder.progress.say(f"before training: {in_words(shown)}")

    def validate(self, step: int, model: PreTrainedModel) -> dict[str, Any]:
        """Score the weights after a step; return the recorded line."""
        recorder = self._recorder
        unwrapped: Any = getattr(model, "module", model)
        listener = ranks.StopListener(recorder.progress)
        with scoring():
            scores = self._score(unwrapped, listener)
            general = self.forgetting.score(unwrapped, recorder.log, listener)
        # Ranks that score in batches of their own may differ in the last bit, and a rank that decided alone
        # would save alone.
        scores, general = ranks.from_first((scores, general))
        line = {"step": step, **{f"validation_{name}": value for name, value in scores.items()}, **general}
        recorder.record(line)
        recorder.progress.say(f"step {step}: validation {in_words(scores | general)}")
        return line

    def best_step(self) -> int | None:
        """Return the scored step with the lowest validation loss within the forgetting budget."""
        return self._recorder.log.best_step(self.forgetting.max_rise)


def in_words(scores: dict[str, float]) -> str:
    """Return scores by name as one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
