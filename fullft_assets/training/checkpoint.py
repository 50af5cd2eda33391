"""training: what of the settings makes a checkpoint, and what is said about one. The work itself is a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.store import CheckOutcome

VERSION = "3"
#: What is measured on the general set, lower is better: nats a token; or, of an encoder, which has no loss on general text, the
#: distance (1 - mean cosine) of its pooled representations from the base model's.
GENERAL_MEASURES = ("general_loss", "general_distance")
#: Settings that came later. At its default such a setting changes nothing, and stays out of keys: earlier work is found.
_LATER = (
    "keep_best",
    "freeze",
    "freeze_layers",
    "layer_decay",
    "l2_sp",
    "ewc",
    "unfreeze_share",
    "wise_ft",
    "distillation",
    "retrain_from",
    "max_general_rise",
    "guards",
    "max_grad_value",
    "optimizer",
    "weights",
    "sharding",
    "compile",
    "liger",
)


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine the weights.

    How often checkpoints are written does so only where a guard rolls back; the incidents are in the checkpoint's metadata.
    """
    chosen = plan_settings(settings)
    if settings.training.retrain_from != "base":
        chosen["retrain_from"] = settings.training.retrain_from
    return {"training": chosen, "processes": settings.launcher.processes}


def plan_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings of training that a plan of it is made for.

    Left out are where its metrics go, how often it writes checkpoints and how many it keeps; and the weights that it begins with, since a
    pilot always begins with the base model.
    """
    chosen = settings.training.model_dump(mode="json", exclude={"track", "retrain_from", "checkpoint_every_steps", "keep_checkpoints"})
    defaults = {name: field.get_default(call_default_factory=True) for name, field in TrainingSettings.model_fields.items()}
    return {name: value for name, value in chosen.items() if name not in _LATER or getattr(settings.training, name) != defaults[name]}


def score_before(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the score on the general set before training, which a step log has as step 0; None where there is none."""
    found = (line[name] for line in history if line["step"] == 0 for name in GENERAL_MEASURES if name in line)
    return next(found, None)


def checks(history: list[dict[str, Any]], scores: Mapping[str, float]) -> list[CheckOutcome]:
    """Judge a finished run by its step log: `loss` and `validation_loss` by step.

    Args:
        history: the log's lines.
        scores: of the model that is saved, `validation_loss` among them; no step may have had its weights.
    """
    losses = [line["loss"] for line in history if "loss" in line]
    ended = scores["validation_loss"]
    # Thirds: a line is the mean of a few batches, and one alone says more of its rows than of the model.
    third = max(1, len(losses) // 3)
    first, last = sum(losses[:third]) / third, sum(losses[-third:]) / third
    best = min([ended, *(line["validation_loss"] for line in history if "validation_loss" in line)])
    return [
        CheckOutcome(
            name="loss_is_falling",
            passed=last < first,
            description=f"training loss {first:.3f} in the first third, {last:.3f} in the last"
            + ("" if last < first else "; raise training.learning_rate or training.epochs, or look at the labels"),
            metadata={"first_loss": first, "last_loss": last},
        ),
        CheckOutcome(
            name="is_not_overfitted",
            passed=ended <= best * 1.1,
            severity="warn",
            description=f"validation loss {ended:.3f}, best {best:.3f}"
            + ("" if ended <= best * 1.1 else "; lower training.epochs, or set training.keep_best"),
            metadata={"validation_loss": ended, "best_validation_loss": best},
        ),
    ]
