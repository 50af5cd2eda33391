"""The settings that determine a checkpoint (its key), and the checks of a finished training."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import CheckOutcome
from fullft_assets.store.checks import CheckSpec
from fullft_assets.task import task_of

VERSION = "7"
#: In a checkpoint's folder: the metrics by step, as JSON lines.
STEP_LOG = "logs/metrics.jsonl"
#: Measures on the general set, lower is better: nats per token; for an encoder, which has no loss on general
#: text, the distance (1 - mean cosine) of its pooled representations from the base model's.
GENERAL_MEASURES = ("general_loss", "general_distance")
#: Standard errors within which the difference of two mean losses is noise.
_STANDARD_ERRORS = 2.0
LOSS_IS_FALLING = CheckSpec(
    "loss_is_falling",
    "The training loss, or where its noise hides it the validation loss, ended below where it began.",
    blocking=True,
)
IS_NOT_OVERFITTED = CheckSpec("is_not_overfitted", "The validation loss ended near its best.")
CHECKS = (LOSS_IS_FALLING, IS_NOT_OVERFITTED)


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine the weights.

    The interval of checkpoints does so only if a guard rolls back; such incidents are in the checkpoint's
    metadata. The number of processes and the kind of GPU are not among them, so that a training can resume
    with others.
    """
    return {
        "training": {
            **plan_settings(settings),
            "retrain_from": settings.training.retrain_from,
            "begins_as_probe": "frozen_probe" in settings.baselines,
        }
    }


def plan_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings of training that a plan depends on.

    These are all but the trackers of its metrics, the interval of its checkpoints, and the weights
    that it begins with: a pilot always begins with the base model. `micro_batch_size: auto` has the number
    that it has on a CPU: those that fit differ between machines, on which a training may resume.
    """
    excluded = {"track", "retrain_from", "checkpoint_every_steps"} | (
        # Earlier trainings had no such setting, and need not be repeated.
        {"betas"} if settings.training.betas is None else set()
    )
    recorded = settings.training.model_dump(mode="json", exclude=excluded)
    if task_of(settings.examples).is_generative:
        recorded["learning_rate"] = settings.training.peak_rate
    elif settings.training.epochs is None:
        recorded["min_rows_read"] = task_of(settings.examples).min_rows_read
    return recorded | {"micro_batch_size": settings.training.rows_a_pass()}


def read_step_log(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the lines of the step log in a checkpoint's folder; nothing where it came without one."""
    path = checkpoint / STEP_LOG
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )


def score_before(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the score on the general set before training, which a step log has at step 0; None if it was not
    measured.
    """
    return next(
        (line[name] for line in history if line["step"] == 0 for name in GENERAL_MEASURES if name in line),
        None,
    )


def checks(history: list[dict[str, Any]], scores: Mapping[str, float]) -> list[CheckOutcome]:
    """Return the checks of a finished training, from its step log with `loss` and `validation_loss` by step.

    Args:
        scores: metrics of the saved model, `validation_loss` among them; its weights may be those of no step.
    """
    losses = [line["loss"] for line in history if "loss" in line]
    validation_losses = [line["validation_loss"] for line in history if "validation_loss" in line]
    final_loss = scores["validation_loss"]
    best = min([final_loss, *validation_losses])
    return [
        _falling(losses, [*validation_losses, final_loss]),
        CheckOutcome(
            name=IS_NOT_OVERFITTED.name,
            passed=final_loss <= best * 1.1,
            severity="warn",
            description=f"validation loss {final_loss:.3f}, best {best:.3f}"
            + ("" if final_loss <= best * 1.1 else "; lower training.epochs, or set training.keep_best"),
            metadata={"validation_loss": final_loss, "best_validation_loss": best},
        ),
    ]


def _falling(losses: Sequence[float], validation: Sequence[float]) -> CheckOutcome:
    """Return the check whether a model has learned.

    The training loss is of other rows at each step, the validation loss of the same ones: where the noise of
    the first hides whether it fell, the second decides, and without two values of it the check is yellow. A
    short training of a language model was refused by noise otherwise.
    """
    # Thirds: each line is the mean of a few batches, too few steps to judge the model by one line.
    third = max(1, len(losses) // 3)
    first = fmean(losses[:third])
    last = fmean(losses[-third:])
    fell = last < first
    # Of the last third: a loss that rises or falls fast at first spreads without noise.
    noise = (
        stdev(losses[-third:]) * math.sqrt(2 / third)
        if third > 1 and all(map(math.isfinite, losses))
        else 0.0
    )
    is_unclear = noise > 0 and abs(last - first) <= _STANDARD_ERRORS * noise
    description = f"training loss {first:.3f} in the first third, {last:.3f} in the last"
    if is_unclear and not fell:
        description += ", within its noise"
        if len(validation) > 1:
            fell = validation[-1] < validation[0]
            description += f"; validation loss {validation[0]:.3f} at first, {validation[-1]:.3f} at the end"
    if not fell:
        description += "; raise training.learning_rate or training.epochs, or look at the labels"
    return CheckOutcome(
        name=LOSS_IS_FALLING.name,
        passed=fell,
        severity="warn" if is_unclear and len(validation) < 2 and math.isfinite(validation[-1]) else "error",
        description=description,
        metadata={"first_loss": first, "last_loss": last},
    )
