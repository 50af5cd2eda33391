"""The keys of every kind of launcher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fullft_assets.errors import without_secrets
from fullft_assets.settings.base import Float, Settings

#: Names of variables whose values are secrets; a file or folder of secrets is none.
_SECRET = re.compile(
    r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?)(_|$)(?!FILE$|PATH$|DIR$)|(^|_)API_?KEY$", re.IGNORECASE
)
Retries = Annotated[
    int,
    Field(
        ge=0,
        le=20,
        description=(
            "How often a workload that was preempted, or lost its machine, is launched again in the same run;"
            " it resumes from its checkpoint."
        ),
    ),
]


def without_secret(environment: dict[str, str], instead: str) -> dict[str, str]:
    """Return the variables of a workload whose request others may read, or raise with what to do about a
    secret among them.
    """
    for name, value in environment.items():
        if _SECRET.search(name) or without_secrets(value) != value:
            raise ValueError(
                f"{name} is a secret, which everybody who may describe the job would see; {instead}"
            )
    return environment


class LauncherSettings(Settings):
    """Where heavy work runs. These keys are those of every kind; a kind may have more of its own."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "spot_poll_seconds": "training looks for a notice every 5 s: remove the line",
    }

    kind: str = Field(
        default="local",
        description=(
            "Where workloads run: `local` = supervised processes on this machine, `ssh` = another machine,"
            " `kubernetes` = Jobs of a cluster, `sagemaker` = Training Jobs of Amazon SageMaker, `ecs` ="
            " tasks of Amazon ECS, or the name of a launcher that a package adds."
        ),
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Number of training processes (one per GPU); torchrun starts them if there is more than one."
        ),
    )
    grace_seconds: Float = Field(
        default=30.0,
        ge=0,
        description=(
            "Time that a cancelled workload has to finish its optimizer step and write its checkpoint before"
            " it is killed; the plan says where it is too short."
        ),
    )
    max_hours: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Time after which a workload is stopped as if it were cancelled; the same command resumes it."
            " Default: none."
        ),
    )
    max_retries: Retries = 0
    orphan_hours: Float | None = Field(
        default=1.0,
        ge=0,
        description=(
            "Time after the end of its run after which a job that no other run has attached to is stopped as"
            " if it were cancelled, so that nothing is paid for unseen; the next run resumes it. Jobs of"
            " `local` end with their run. `null`: never."
        ),
    )
    spot_notice: Literal["none", "aws"] = Field(
        default="none",
        description=(
            "Where training looks for the interruption notice of a spot instance, on which it writes a"
            " checkpoint: `aws` = EC2's instance metadata, also for a task of ECS, which does not stop it"
            " then. Kubernetes and SageMaker send SIGTERM, which training always handles."
        ),
    )

    @property
    def max_seconds(self) -> float | None:
        """`max_hours` in seconds."""
        return None if self.max_hours is None else self.max_hours * 3600

    @property
    def target(self) -> dict[str, Any]:
        """What of the section names the machines: a plan is made for them. None of it depends on the machine
        that reads the YAML.
        """
        return {"kind": self.kind, **(self.model_extra or {})}

    @property
    def pool(self) -> str:
        """The pool of Dagster whose slots runs of this launcher wait for: what another machine does holds
        nothing up on this one.
        """
        return "gpu" if self.kind == "local" else self.kind
