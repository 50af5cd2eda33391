"""What is known of a training step: measured with real steps, or counted without weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Measured(BaseModel):
    """What the planning workload measured with real training steps.

    Attributes:
        peak_memory_bytes: of each process, with a margin.
        available_memory_bytes: that each process of the training may take.
        num_processes: processes that shared the model during the measurement.
    """

    model_config = ConfigDict(frozen=True)

    num_parameters: int
    num_trained_parameters: int
    num_rows: int
    num_steps: int
    num_tokens: int
    num_padded_tokens: int
    predicted_seconds: float
    peak_memory_bytes: int
    available_memory_bytes: int
    device: str
    precision: str
    num_processes: int = 1


class StepMemory(BaseModel):
    """Bytes of a training step in one process that holds the complete model.

    Attributes:
        gradients: of the trained weights; 0 where they are freed in the backward pass.
        largest_layer: of the weights, the embeddings as one layer.
        copies: other models' weights that stay: the teacher, or what regularization pulls to.
        activations: saved and temporary tensors, logits included, at the time when there are most of them.
        peak: most bytes that exist at a time; less than the sum of all, as gradients come while activations
            go.
    """

    model_config = ConfigDict(frozen=True)

    weights: int
    buffers: int
    gradients: int
    moments: int
    copies: int
    largest_layer: int
    activations: int
    peak: int

    @property
    def state(self) -> int:
        """Bytes that stay from step to step, and the gradients."""
        return self.weights + self.buffers + self.gradients + self.moments + self.copies


class Work(BaseModel):
    """What a training computes: sizes of its model and of its passes.

    Attributes:
        flops: useful FLOP of all steps: padding and recomputation do not count.
        num_padded_tokens: tokens of all passes, padding included.
    """

    model_config = ConfigDict(frozen=True)

    num_parameters: int
    num_trained_parameters: int
    num_rows: int
    num_tokens: int
    num_padded_tokens: int
    flops: float
