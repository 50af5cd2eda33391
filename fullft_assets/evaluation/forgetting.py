"""What a model forgot of general text, over all its trainings since the base model."""

from __future__ import annotations

import math
from typing import Literal

from fullft_assets.checkpoint.metadata import CheckpointMetadata, PastTraining
from fullft_assets.evaluation.intervals import Record
from fullft_assets.store import Manifest

#: The budget of a loss that nobody has set a budget for: the perplexity of general text may double.
#: docs/decisions/0024 says why.
DEFAULT_RISE = math.log(2)


class Forgetting(Record):
    """What was measured on the general set (`snapshot.general`).

    Attributes:
        measure: `loss` in nats a token; `distance` of representations from the base model's, 1 - mean cosine,
            where there is no loss.
        rise: of all trainings since the base model together. Each counts on the general set of its own
            snapshot.
        num_unmeasured: trainings without a general set; what they made the model forget is not in `rise`.
        training_budget: `training.max_general_rise` of the last training.
    """

    measure: Literal["loss", "distance"]
    before: float
    after: float
    rise: float
    num_trainings: int
    num_unmeasured: int
    training_budget: float | None = None

    @property
    def budget(self) -> float | None:
        """The largest rise that is allowed; None: a distance has no natural limit."""
        if self.training_budget is not None:
            return self.training_budget
        return DEFAULT_RISE if self.measure == "loss" else None

    @property
    def what(self) -> str:
        """What rose, in words."""
        return (
            "loss on general text (nats a token)"
            if self.measure == "loss"
            else "distance of general texts' representations"
        )


def forgetting_of(checkpoint: Manifest) -> Forgetting | None:
    """Return what a checkpoint forgot, or None where its own training did not measure it."""
    metadata = CheckpointMetadata.of(checkpoint)
    trainings, after = [*metadata.lineage, metadata], _after(metadata)
    if after is None or metadata.general_before is None:
        return None
    rises = [
        reached - each.general_before
        for each in trainings
        if (reached := _after(each)) is not None and each.general_before is not None
    ]
    return Forgetting(
        measure="loss" if metadata.general_loss is not None else "distance",
        before=metadata.general_before,
        after=after,
        rise=sum(rises),
        num_trainings=len(trainings),
        num_unmeasured=len(trainings) - len(rises),
        training_budget=checkpoint.settings.get("training", {}).get("max_general_rise"),
    )


def _after(training: PastTraining | CheckpointMetadata) -> float | None:
    return training.general_loss if training.general_loss is not None else training.general_distance
