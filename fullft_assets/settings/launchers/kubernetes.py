"""The keys of `kind: kubernetes`."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from fullft_assets.settings.base import Float
from fullft_assets.settings.launchers.base import LauncherSettings, Retries, without_secret


class KubernetesLauncherSettings(LauncherSettings):
    """Keys of `kind: kubernetes`: each workload is an Indexed Job of a cluster."""

    kind: str = Field(default="kubernetes", description="Workloads run as Jobs of a Kubernetes cluster.")
    context: str | None = Field(
        default=None,
        description=(
            "Context of your kubeconfig. Default: the cluster of the pod that launches, else the current"
            " context."
        ),
    )
    namespace: str = Field(
        default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Namespace of the Jobs."
    )
    image: str = Field(
        pattern=r"^[^\s-]\S*$",
        description=(
            "Image by its digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version. Its entry"
            " point runs its arguments."
        ),
    )
    allow_tags: bool = Field(
        default=False, description="Whether `image` may have no digest; a tag can be another image tomorrow."
    )
    image_pull_secrets: list[str] = Field(
        default_factory=list, description="Names of the Secrets with which the image is pulled."
    )
    python: str = Field(default="python", description="Python in the image that has fullft_assets.")
    folder: str | None = Field(
        default=None,
        description=(
            "The project's folder in the image: where relative paths of this YAML start, such as"
            " `base_model`. Default: the same path as here."
        ),
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Pods that share a training; each starts as many of launcher.processes as the others. Other"
            " workloads take one pod."
        ),
    )
    gpu_resource: str | None = Field(
        default="nvidia.com/gpu",
        description="Resource of which a pod asks for one for each of its processes. `null`: the CPU alone.",
    )
    cpu: str | int | None = Field(
        default=None, description="CPU that each pod asks for, such as `8`. Default: the namespace's."
    )
    memory: str | None = Field(
        default=None,
        description=(
            "Memory that each pod asks for and may use, shared memory included, such as `64Gi`. Default: the"
            " namespace's."
        ),
    )
    shared_memory: str = Field(
        default="2Gi",
        description=(
            "Size of /dev/shm, in which the processes of a pod share memory; it counts as memory of the pod."
        ),
    )
    claims: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Persistent volume claims by name, and where each is mounted: base models, a store in a folder,"
            " `$FULLFT_CACHE`."
        ),
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict,
        description="Labels that a node must have: the kind of its GPU, or spot capacity.",
    )
    tolerations: list[dict[str, str | int]] = Field(
        default_factory=list,
        description=(
            "Taints of nodes that are no obstacle, as Kubernetes writes them: key, operator, value, effect."
        ),
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Labels of Job and pods, such as `kueue.x-k8s.io/queue-name`, with which Kueue admits the Job."
        ),
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations of Job and pods.")
    service_account: str | None = Field(
        default=None,
        description=(
            "Service account of the pods, for rights on a cloud's storage; they get no token for the cluster."
        ),
    )
    run_as: int = Field(
        default=10_001,
        ge=1,
        description="Number of the user and group that the workload runs as; never root.",
    )
    secrets: list[str] = Field(
        default_factory=list,
        description=(
            "Names of Secrets whose keys become variables of the workload, such as credentials of the store."
        ),
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Variables of the workload, such as AWS_ENDPOINT_URL; no secrets: whoever may describe the Job"
            " can read them."
        ),
    )
    pending_minutes: Float = Field(
        default=60.0,
        gt=0,
        description=(
            "Time that pods may wait for nodes and images; after it the workload counts as one that lost its"
            " machine. Time that a Job is suspended by a queue does not count."
        ),
    )
    max_hours: Float | None = Field(
        default=24.0,
        gt=0,
        description=(
            "Time after which the cluster stops a workload as if it were cancelled, also if nobody follows"
            " it; the same command resumes it. `null`: none."
        ),
    )
    max_retries: Retries = 2

    @property
    def target(self) -> dict[str, Any]:
        """What a node must have; a plan is made on one of them."""
        return {
            "kind": self.kind,
            **self.model_dump(include={"node_selector", "gpu_resource", "cpu", "memory"}),
        }

    @field_validator("environment")
    @classmethod
    def _has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        return without_secret(environment, "put it into a Secret and name that in secrets")

    @model_validator(mode="after")
    def _is_possible(self) -> KubernetesLauncherSettings:
        if not self.allow_tags and not re.search(r"@sha256:[0-9a-f]{64}$", self.image):
            raise ValueError(
                f"image {self.image} has no digest: write it as REPOSITORY@sha256:..., or set allow_tags:"
                " true"
            )
        if self.processes % self.nodes:
            raise ValueError(
                f"processes ({self.processes}) must be a multiple of nodes ({self.nodes}): every pod starts"
                " as many"
            )
        return self
