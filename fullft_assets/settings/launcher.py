"""The section `launcher`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fullft_assets.settings.base import Float, Settings


class LauncherSettings(Settings):
    """Where heavy work runs."""

    kind: str = Field(
        default="local",
        description="Where workloads run: `local` = supervised processes on this machine, or the name of a launcher that a package adds.",
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="Number of training processes (one per GPU); torchrun starts them if there is more than one."
    )
    grace_seconds: Float = Field(
        default=30.0,
        ge=0,
        description="Time that a cancelled workload has to finish its optimizer step and write its checkpoint before it is killed; the "
        "plan says where it is too short.",
    )
    spot_notice: Literal["none", "aws"] = Field(
        default="none",
        description="Where training looks for the interruption notice of a spot instance, on which it writes a checkpoint: `aws` = EC2's "
        "instance metadata. Kubernetes and ECS send SIGTERM, which training always handles.",
    )
    spot_poll_seconds: Float = Field(
        default=5.0, gt=0, le=30, description="Time between two looks for a spot notice, which comes two minutes before the interruption."
    )
