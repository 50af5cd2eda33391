"""The metadata of a checkpoint: what it was trained from, what training took, and its scores."""

from typing import Annotated, Any

from pydantic import ConfigDict

from fullft_assets.record import StrictRecord
from fullft_assets.settings import MODELS
from fullft_assets.store.metadata import Metadata, Private

#: What an evaluation calls the fine-tuned model.
FINETUNED = MODELS[0]


class PastTraining(StrictRecord):
    """One training that a model went through: the checkpoint, the snapshot that it read, and what it made the
    model forget.
    """

    checkpoint: str
    snapshot: str
    snapshot_digest: str
    general_before: float | None = None
    general_loss: float | None = None
    general_distance: float | None = None


class RecordedIncident(StrictRecord):
    """An event after which the run continued differently from planned: a roll-back, smaller micro-batches, an
    early end.
    """

    event: str
    step: int
    continued_from_step: int
    reason: str


class CheckpointMetadata(Metadata):
    """The metadata of a `finetuned_checkpoint`, or of a `baseline_model`.

    Attributes:
        system: what an evaluation calls it: finetuned, or the name of a baseline.
        model_of_step: the step after which the model had its weights.
        wise_ft_alpha: share of the fine-tuned weights.
        facts: `validation_loss` and the task's metrics on the validation rows, named `validation_...`; and
            what the task's recipe reports, such as `isolation`, `is_packed`, `kernels`, `head` and
            `label_thresholds`.
        versions: of torch, transformers and other libraries at the end of the training, by name.
        settings_digest: of all settings of the use case.
    """

    # A loss that is not finite stays one.
    model_config = ConfigDict(ser_json_inf_nan="constants")
    spread_field = "facts"

    system: str = FINETUNED
    base_model: str
    base_model_revision: str
    base_model_weights: str
    snapshot: str
    labels: Annotated[list[str], Private.LABELS]
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
    general_before: float | None = None
    general_loss: float | None = None
    general_distance: float | None = None
    general_rise: float | None = None
    wise_ft_alpha: float | None = None
    wise_ft_scores: list[dict[str, float]] | None = None
    versions: dict[str, str] = {}
    facts: Annotated[dict[str, Any], Private.LABELS] = {}
    settings_digest: str

    @property
    def general_scores(self) -> dict[str, float]:
        """The scores on the general set by their names; empty without a general set."""
        return {name: value for name, value in self.as_dict().items() if name.startswith("general_")}
