"""training: what of the settings makes a checkpoint, and what is said about one. The work itself is a workload."""

from __future__ import annotations

from typing import Any

from fullft_assets.settings import UseCaseSettings
from fullft_assets.store import CheckOutcome

VERSION = "2"


def key_settings(settings: UseCaseSettings) -> dict[str, Any]:
    """Return the settings that determine the weights."""
    chosen = settings.training.model_dump(exclude={"checkpoint_every_steps", "keep_checkpoints"})
    return {"training": chosen, "processes": settings.launcher.processes}


def checks(history: list[dict[str, Any]]) -> list[CheckOutcome]:
    """Judge a finished run by its step log: `loss` and `validation_loss` by step."""
    losses = [line["loss"] for line in history if "loss" in line]
    validation = [line["validation_loss"] for line in history if "validation_loss" in line]
    # Thirds: a line is the mean of a few batches, and one alone says more of its rows than of the model.
    third = max(1, len(losses) // 3)
    first, last = sum(losses[:third]) / third, sum(losses[-third:]) / third
    best = min(validation)
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
            passed=validation[-1] <= best * 1.1,
            severity="warn",
            description=f"validation loss {validation[-1]:.3f}, best {best:.3f}"
            + ("" if validation[-1] <= best * 1.1 else "; lower training.epochs"),
            metadata={"validation_loss": validation[-1], "best_validation_loss": best},
        ),
    ]
