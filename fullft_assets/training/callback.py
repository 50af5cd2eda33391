"""The callback through which a training segment follows Trainer: after each step it records, checks,
validates and decides what to save.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from fullft_assets.errors import DivergenceError, Interrupted
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import complete_checkpoints, publish, retain
from fullft_assets.training.guard_actions import GuardActions
from fullft_assets.training.recorder import StepRecorder
from fullft_assets.training.run_history import RunHistory
from fullft_assets.training.stored_checkpoints import StoredCheckpoints
from fullft_assets.training.validation import Validator

#: Steps in a row without a finite gradient that end a run, whatever its guards do. Clipping makes such
#: gradients zero, and the loss scaler of fp16, which skips such steps, has halved its scale to nothing by
#: then.
_MOST_UNMOVED_STEPS = 20


class SegmentCallback(TrainerCallback):
    """Follows one segment of a run, from its start, a resume or a roll-back to its end.

    Args:
        history: may have an early end of the run.
        evaluate_at: steps after which the validation rows are scored.
        resumable: whether checkpoints are written.
        stored: where checkpoints go beside this machine's disk.
    """

    def __init__(
        self,
        recorder: StepRecorder,
        validator: Validator,
        guards: GuardActions,
        history: RunHistory,
        evaluate_at: set[int],
        *,
        resumable: bool,
        stored: StoredCheckpoints | None,
    ):
        self._recorder = recorder
        self._validator = validator
        self._guards = guards
        self._history = history
        self._evaluate_at = evaluate_at
        self._resumable = resumable
        self._stored = stored
        #: The step of the last checkpoint of this segment; None: there is none yet.
        self.saved_step: int | None = None
        self._num_unmoved_steps = 0
        #: A request to stop ended this segment.
        self.stopped = False
        #: Whether the checkpoint that is being written would be written in every run over the same rows.
        self.save_is_planned = True

    def on_train_begin(self, args, state, control, **kwargs):
        """Exclude the time before the first step from the step's rates."""
        self._recorder.meter.start()

    def on_save(self, args, state, control, **kwargs):
        """Exclude the time of a checkpoint from the next step's rates."""
        self.saved_step = state.global_step
        self._recorder.meter.start()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, model: Any = None, **kwargs):
        """Record and check a step, validate where that is planned, and end the segment where that is due."""
        if logs is None or "loss" not in logs:
            return
        step = state.global_step
        self.save_is_planned = control.should_save
        self._guards.check(self._recorder.record_step(step, state.max_steps, logs, is_fp16=args.fp16))
        self._require_movement(step, logs.get("grad_norm"))
        if step in self._evaluate_at and self.validate(step, model):
            control.should_save = self.save_is_planned = True
        if step == self._history.end_step:
            control.should_training_stop = True
            control.should_save = self.save_is_planned = self._resumable
        # Ranks learn of a stop at different steps; a rank that saved alone would wait for the others for
        # ever.
        elif self.stopped or (
            step < state.max_steps and ranks.any_rank(self._recorder.progress.stop_requested)
        ):
            self.stopped = control.should_training_stop = True
            control.should_save = self._resumable

    def _require_movement(self, step: int, norm: float | None) -> None:
        self._num_unmoved_steps = (
            self._num_unmoved_steps + 1 if norm is not None and not math.isfinite(norm) else 0
        )
        if self._num_unmoved_steps >= _MOST_UNMOVED_STEPS:
            raise DivergenceError(
                f"training stopped at step {step:,}: no gradient was finite in the last {_MOST_UNMOVED_STEPS}"
                " steps, so nothing was learned; use training.precision: fp32, or look for weights in"
                " base_model that are not finite"
            )

    def publish(self, written: Path, target: Path) -> None:
        """Move a checkpoint that Trainer has written aside to its place, and delete those that are no longer
        kept.
        """
        self._recorder.log.sync()
        if self._stored is not None:
            self._stored.copy_beside(target.parent, written)
        publish(written, target, num_incidents=len(self._history.incidents), is_planned=self.save_is_planned)
        self.delete_old_checkpoints()
        if self._stored is not None:
            best = self._validator.best_step()
            # The best one first: who finds the newest one there finds all that it needs.
            offered = [
                checkpoint.path
                for checkpoint in complete_checkpoints(target.parent, self._history)
                if checkpoint.step == best
            ]
            self._stored.offer([*offered, target], self._history, best=best)

    def delete_old_checkpoints(self) -> None:
        """Delete the checkpoints that are no longer kept on this machine."""
        best = self._validator.best_step()
        with self._stored.spared() if self._stored is not None else nullcontext() as spared:
            retain(
                self._recorder.log.path.parent,
                self._history,
                best=best,
                spared=spared,
            )

    def validate(self, step: int, model: PreTrainedModel) -> bool:
        """Score the weights after a step and check the scores; return whether to keep the weights as the
        best.

        A request to stop cuts it short; the next segment scores the same weights then.
        """
        try:
            line = self._validator.validate(step, model)
        except Interrupted:
            self.stopped = True
            return False
        self._guards.check(line)
        forgetting = self._validator.forgetting
        if "general_rise" in line and forgetting.is_spent(line):
            self._guards.end_early(forgetting.finding(step, line))
        self._recorder.meter.start()
        return self._resumable and self._validator.best_step() == step
