"""Measurements of real training steps."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Measured(BaseModel):
    """What the planning workload measured with real training steps.

    Attributes:
        host_memory_bytes: memory of the host, if the accelerator has its own memory.
        num_processes: processes that shared the model during the measurement; memory is that of each one.
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
    host_memory_bytes: int | None = None
    num_processes: int = 1
