"""What planning measures, with real training steps or counted without weights, and the metadata of its
artifacts.
"""

from typing import Annotated, Any

from pydantic import ConfigDict

from fullft_assets.record import Record
from fullft_assets.store.metadata import Metadata, Private


class TrainingSize(Record):
    """How large a training is.

    Attributes:
        num_padded_tokens: tokens of all passes, padding included.
    """

    num_parameters: int
    num_trained_parameters: int
    num_rows: int
    num_tokens: int
    num_padded_tokens: int


class Measured(TrainingSize):
    """What the planning workload measured with real training steps.

    Attributes:
        peak_memory_bytes: of each process, with a margin.
        available_memory_bytes: that each process of the training may take.
        num_processes: processes that shared the model during the measurement.
    """

    num_steps: int
    predicted_seconds: float
    peak_memory_bytes: int
    available_memory_bytes: int
    device: str
    precision: str
    num_processes: int = 1


class StepMemory(Record):
    """Bytes of a training step in one process, which holds the complete model, or its part of a shared one.

    Attributes:
        gradients: of the trained weights; 0 where they are freed in the backward pass.
        copies: other models' weights that stay: the teacher, or what regularization pulls to.
        activations: saved and temporary tensors, logits included, at the time when there are most of them.
        peak: most bytes that exist at a time; less than the sum of all, as gradients come while activations
            go.
    """

    weights: int
    buffers: int
    gradients: int
    moments: int
    copies: int
    activations: int
    peak: int

    @property
    def state(self) -> int:
        """Bytes that stay from step to step, and the gradients."""
        return self.weights + self.buffers + self.gradients + self.moments + self.copies


class Work(TrainingSize):
    """What a training computes.

    Attributes:
        flops: useful FLOP of all steps: padding and recomputation do not count.
    """

    flops: float


class PlanMetadata(Measured, Metadata):
    """Metadata of `feasibility_plan`: the measurements, and what follows from them.

    Attributes:
        state_memory_gib: part of the peak for weights, gradients and moments.
        hardware: the machine that the plan was measured on, see `local_hardware`.
        flops: useful FLOP of the training; 0 where they are not known.
        targets: the plan on this machine and on others, a table; empty where the model cannot be counted
            without weights.
        recommended: the best target by price and time, in words.
        stop_seconds: from a request to stop to the checkpoint.
    """

    #: A task's recipe reports more: which kernels it uses, whether rows are packed.
    model_config = ConfigDict(extra="allow")

    planned_hours: float
    planned_usd: float
    peak_memory_gib: float
    state_memory_gib: float
    stop_seconds: float
    padding_share: float
    hardware: dict[str, Any] = {}
    flops: float = 0.0
    targets: list[dict[str, str]] = []
    recommended: str = ""


class BaselinesMetadata(Metadata):
    """Metadata of `cheaper_baselines`, by baseline.

    Attributes:
        scores: on the validation rows, in the primary metric.
        seconds: to fit it, to predict the validation rows, and to measure its rise.
        usd: these seconds at `planning.hourly_usd`, and what a service asked for.
        rises: on general text since the base model, of those that train it and where there is such text.
    """

    labels: Annotated[list[str], Private.LABELS]
    scores: dict[str, float]
    seconds: dict[str, float]
    usd: dict[str, float]
    rises: dict[str, float] = {}
    best: str
    best_score: float


class PilotMetadata(Metadata):
    """Metadata of `pilot_run`.

    Attributes:
        learning_curve: `rows`, `start`, `baseline` and the primary metric of the pilot, see `pilot.Point`.
        lora_score: of LoRA on the pilot's rows; None: not measured.
        predicted, predicted_low, predicted_high: score at `target_rows`, and its 90% interval.
    """

    learning_curve: list[dict[str, int | float]]
    lora_score: float | None = None
    predicted: float
    predicted_low: float
    predicted_high: float
    target_rows: int
    best_baseline: str
    best_baseline_score: float
    seconds: float
    num_tokens: int
