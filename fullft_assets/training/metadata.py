"""The metadata of a checkpoint: what it was trained from, what training took, and its scores."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from fullft_assets.store.metadata import Metadata

_VALIDATION = "validation_"


class PastTraining(BaseModel):
    """One training that a model went through: the checkpoint, the snapshot that it read, and what it made the model forget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    snapshot: str
    snapshot_digest: str
    general_before: float | None = None
    general_loss: float | None = None
    general_distance: float | None = None


class RecordedIncident(BaseModel):
    """An event after which the run continued differently from planned: a roll-back, smaller micro-batches, an early end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: str
    step: int
    continued_from_step: int
    reason: str


class CheckpointMetadata(Metadata):
    """The metadata of a `finetuned_checkpoint`. In the manifest `validation` and `facts` are not nested: their items are keys like others.

    Attributes:
        base_model: as the settings name it.
        base_model_revision: digest of its header.
        base_model_weights: sha256 of its weights.
        snapshot: the `training_snapshot` that it was trained on.
        labels: in the order of the model's outputs.
        trained_from: the model that training began with.
        lineage: the trainings before this one, the oldest first.
        num_steps: optimizer steps taken.
        model_of_step: the step after which the model had its weights.
        num_tokens: useful tokens of these steps.
        training_seconds: over all segments of the run.
        tokens_per_second: useful tokens.
        resumed_from_step: where the last process began.
        micro_batch_size: rows a forward pass at the end.
        incidents: see `RecordedIncident`.
        num_warnings: warnings of guards.
        precision: that training computed in.
        validation: `validation_loss` and the task's metrics on the validation rows, named `validation_...`.
        general_before: score on the general set before training.
        general_loss: after it, in nats a token.
        general_distance: after it, of an encoder's representations.
        general_rise: of the score over the one before training.
        wise_ft_alpha: share of the fine-tuned weights.
        wise_ft_scores: of each share that was tried.
        facts: what the task's recipe reports, such as `isolation`, `is_packed`, `kernels`, `head` and `label_thresholds`.
        settings_digest: of all settings of the use case.
        replaces: content digests of artifacts that an erasure replaced by this one.
    """

    # A loss that is not finite stays one.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    base_model: str
    base_model_revision: str
    base_model_weights: str
    snapshot: str
    labels: list[str]
    trained_from: str
    lineage: list[PastTraining] = []
    num_parameters: int
    num_trained_parameters: int
    num_steps: int
    model_of_step: int
    num_tokens: int
    training_seconds: float
    tokens_per_second: float
    training_usd: float
    resumed_from_step: int
    peak_memory_gib: float
    micro_batch_size: int
    incidents: list[RecordedIncident]
    num_warnings: int
    precision: str
    validation: dict[str, float]
    general_before: float | None = None
    general_loss: float | None = None
    general_distance: float | None = None
    general_rise: float | None = None
    wise_ft_alpha: float | None = None
    wise_ft_scores: list[dict[str, float]] | None = None
    facts: dict[str, Any] = {}
    settings_digest: str
    replaces: list[str] | None = None

    @property
    def general_scores(self) -> dict[str, float]:
        """The scores on the general set by their names; empty without a general set."""
        return {name: value for name, value in self.as_dict().items() if name.startswith("general_")}

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, given: Any) -> Any:
        """Collect the keys of the scores, and those that only the recipe knows."""
        if not isinstance(given, dict) or "validation" in given:
            return given
        known = {name: value for name, value in given.items() if name in cls.model_fields}
        scores = {name: value for name, value in given.items() if name.startswith(_VALIDATION)}
        facts = {name: value for name, value in given.items() if name not in known and name not in scores}
        return {**known, "validation": scores, "facts": facts}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        scores, facts = found.pop("validation"), found.pop("facts")
        return {**found, **scores, **facts}
