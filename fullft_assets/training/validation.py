"""Scores a model while it is trained: on the validation rows, and on the general set that shows what it
forgets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from fullft_assets.jobs.progress import Listener
from fullft_assets.models.inference import scoring
from fullft_assets.training import ranks
from fullft_assets.training.forgetting import ForgettingBudget
from fullft_assets.training.recorder import StepRecorder


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
        self._score, self.forgetting, self._recorder = score, forgetting, recorder

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
