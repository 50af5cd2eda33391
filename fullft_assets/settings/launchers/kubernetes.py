"""The keys of `kind: kubernetes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from fullft_assets.settings.base import Float
from fullft_assets.settings.launchers.base import LauncherSettings, Retries, without_secret

#: The keys of a pod's template that a YAML may set, by their section.
_POD_KEYS: dict[tuple[str, ...], frozenset[str]] = {
    (): frozenset(("metadata", "spec")),
    ("metadata",): frozenset(("labels", "annotations")),
    ("spec",): frozenset(
        (
            "nodeSelector",
            "affinity",
            "tolerations",
            "topologySpreadConstraints",
            "priorityClassName",
            "schedulerName",
            "runtimeClassName",
            "imagePullSecrets",
            "hostAliases",
            "dnsConfig",
            "dnsPolicy",
            "securityContext",
        )
    ),
    ("spec", "securityContext"): frozenset(("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups")),
}


class KubernetesLauncherSettings(LauncherSettings):
    """Keys of `kind: kubernetes`: each workload is an Indexed Job of a cluster."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **LauncherSettings.REMOVED,
        "allow_tags": "give `image` by its digest, REPOSITORY@sha256:...",
        "image_pull_secrets": "set pod: {spec: {imagePullSecrets: [{name: ...}]}}",
        "shared_memory": "/dev/shm may take the memory of the pod: remove the line",
        "node_selector": "set pod: {spec: {nodeSelector: {...}}}",
        "tolerations": "set pod: {spec: {tolerations: [...]}}",
        "labels": "set pod: {metadata: {labels: {...}}}",
        "annotations": "set pod: {metadata: {annotations: {...}}}",
        "run_as": "set pod: {spec: {securityContext: {runAsUser: ..., runAsGroup: ..., fsGroup: ...}}}",
    }

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
        pattern=r"^[^\s-]\S*@sha256:[0-9a-f]{64}$",
        description=(
            "Image by its digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version. Its entry"
            " point runs its arguments."
        ),
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
    claims: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Persistent volume claims by name, and where each is mounted: base models, a store in a folder,"
            " `$FULLFT_CACHE`."
        ),
    )
    pod: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "What is added to the template of the pods, as Kubernetes writes it: `metadata` with labels "
            "(also of"
            " the Job, such as `kueue.x-k8s.io/queue-name`) and annotations, and `spec` with nodeSelector,"
            " affinity, tolerations, topologySpreadConstraints, priorityClassName, schedulerName,"
            " runtimeClassName, imagePullSecrets, hostAliases, dnsConfig, dnsPolicy, and of securityContext "
            "the"
            " numbers of user and groups (10001 by default, never root)."
        ),
    )
    service_account: str | None = Field(
        default=None,
        description=(
            "Service account of the pods, for rights on a cloud's storage; they get no token for the cluster."
        ),
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
            "node_selector": self.pod.get("spec", {}).get("nodeSelector", {}),
            **self.model_dump(include={"gpu_resource", "cpu", "memory"}),
        }

    @field_validator("environment")
    @classmethod
    def _has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        return without_secret(environment, "put it into a Secret and name that in secrets")

    @field_validator("pod")
    @classmethod
    def _leaves_the_workload_alone(cls, pod: dict[str, Any]) -> dict[str, Any]:
        for place, allowed in _POD_KEYS.items():
            section: Any = pod
            for name in place:
                section = section.get(name, {})
            if not isinstance(section, dict):
                raise ValueError(f"{'.'.join(place)} is not a section with keys")
            for name in section.keys() - allowed:
                raise ValueError(
                    f"{'.'.join((*place, name))} is not for a YAML to set, as image, command, account and "
                    f"mounts"
                    f" are the launcher's; allowed here: {', '.join(sorted(allowed))}"
                )
        return pod

    @model_validator(mode="after")
    def _is_possible(self) -> KubernetesLauncherSettings:
        if self.processes % self.nodes:
            raise ValueError(
                f"processes ({self.processes}) must be a multiple of nodes ({self.nodes}): every pod starts"
                " as many"
            )
        return self
