"""The sections `launcher` and `compute`, whose `kind` chooses the class of their keys.

A key that several kinds have is in a class that these kinds share.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from fullft_assets.errors import without_secrets
from fullft_assets.settings.base import Float, Settings

#: Names of variables whose values are secrets; a file or folder of secrets is none.
_SECRET = re.compile(
    r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?)(_|$)(?!FILE$|PATH$|DIR$)|(^|_)API_?KEY$", re.IGNORECASE
)
_ARN_OF_ROLE = r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$"
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
            "serviceAccountName",
        )
    ),
    ("spec", "securityContext"): frozenset(("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups")),
}


#: Keys whose default depends on the kind.
_Grace = Annotated[
    Float,
    Field(
        ge=0,
        description=(
            "Time that a stopped workload has to finish its optimizer step and write its checkpoint before it"
            " is killed; the plan says where it is too short. Default of `sagemaker`, which gives a container"
            " 120 s at most: 100."
        ),
    ),
]
_Hours = Annotated[
    Float | None,
    Field(
        gt=0,
        description=(
            "Time after which a workload is stopped as if it were cancelled, also if nobody follows it; the"
            " same command resumes it. Default of `kubernetes`, `sagemaker` (at most 672), `ecs` and `ray`:"
            " 24."
        ),
    ),
]
_Retries = Annotated[
    int,
    Field(
        ge=0,
        le=20,
        description=(
            "How often a workload that was preempted, or lost its machine, is launched again in the same run;"
            " it resumes from its checkpoint. Default of all kinds but `local`: 2."
        ),
    ),
]
_Python = Annotated[
    str,
    Field(
        description=(
            "Python there that has fullft_assets in the same version, such as `/srv/fullft/.venv/bin/python`."
            " Default of `ssh`: python3."
        ),
    ),
]
_Folder = Annotated[
    str | None,
    Field(
        description=(
            "The project's folder there: where relative paths of this YAML start, such as `base_model`."
            " Default: the same path as here; of `sagemaker` and `ecs` the image's working directory."
        ),
    ),
]


class LauncherSettings(Settings):
    """Where heavy work runs. These keys are those of every kind; a kind may have more of its own."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "spot_poll_seconds": "training looks for a notice every 5 s: remove the line",
        "orphan_hours": "a job that no run follows is stopped an hour after the end of its run",
    }

    kind: str = Field(
        default="local",
        description=(
            "Where workloads run: `local` = supervised processes on this machine, `ssh` = another machine,"
            " `kubernetes` = Jobs of a cluster, `sagemaker` = Training Jobs of Amazon SageMaker, `ecs` ="
            " tasks of Amazon ECS, `ray` = jobs of a Ray cluster, or the name of a launcher that a package"
            " adds."
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
    grace_seconds: _Grace = 30.0
    max_hours: _Hours = None
    max_retries: _Retries = 0
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


class OtherLauncherSettings(LauncherSettings):
    """The section of a launcher from another package, whose own class checks its keys."""

    model_config = ConfigDict(extra="allow")


class RemoteLauncherSettings(LauncherSettings):
    """Keys of the kinds whose workloads run elsewhere, with a Python of that place."""

    python: _Python = "python"
    folder: _Folder = None
    environment: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "Variables of the workload, such as AWS_ENDPOINT_URL; no secrets: whoever may describe the job"
            " can read them."
        ),
    )
    max_retries: _Retries = 2


class SshLauncherSettings(RemoteLauncherSettings):
    """Keys of `kind: ssh`: a GPU machine of one's own, reached with the system's `ssh`."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **LauncherSettings.REMOVED,
        "host: a list": "set kind: kubernetes or sagemaker to train on several machines",
        "user": "set options: {User: ...}",
        "port": "set options: {Port: ...}",
        "key_file": "set options: {IdentityFile: ...}",
        "known_hosts": "set options: {UserKnownHostsFile: ...}",
        **dict.fromkeys(
            ("more_hosts", "rendezvous", "rendezvous_address", "rendezvous_port"),
            "one machine runs a training: for several set kind: kubernetes or sagemaker, or start it by hand",
        ),
    }

    kind: str = Field(default="ssh", description="Workloads run on another machine.")
    host: str = Field(
        pattern=r"^[^-\s]\S*$",
        description="Name or address of the machine, or a `Host` of your `~/.ssh/config`.",
    )
    options: dict[Literal["User", "Port", "ProxyJump", "IdentityFile", "UserKnownHostsFile"], str | int] = (
        Field(
            default_factory=dict,
            description=(
                "Options of `ssh` by their names in `~/.ssh/config`: User, Port, ProxyJump, IdentityFile (a"
                " private key without a passphrase) and UserKnownHostsFile (the machine's host key, which is"
                " always checked). Default: what `~/.ssh/config` says."
            ),
        )
    )
    python: _Python = "python3"

    @property
    def target(self) -> dict[str, Any]:
        """The machine that plans run on; how it is reached from here is no part of a plan."""
        return {"kind": self.kind, "host": self.host}

    @property
    def pool(self) -> str:
        """One pool for each machine."""
        return f"ssh/{self.host}"


class BackendLauncherSettings(RemoteLauncherSettings):
    """Keys of the kinds whose jobs a service keeps and shows."""

    #: Where the value of a secret belongs, for the message that refuses it.
    SECRETS_BELONG: ClassVar[str]

    max_hours: _Hours = 24.0

    @field_validator("environment")
    @classmethod
    def _has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if _SECRET.search(name) or without_secrets(value) != value:
                raise ValueError(
                    f"{name} is a secret, which everybody who may describe the job would see;"
                    f" {cls.SECRETS_BELONG}"
                )
        return environment


class ShareLauncherSettings(BackendLauncherSettings):
    """Keys of the kinds that ask a cluster for a share of a machine."""

    gpus: bool | str = Field(
        default=True,
        description=(
            "Whether a workload asks for a GPU for each of its processes; `false`: the CPU alone. Of"
            " `kubernetes` also the name of the resource, such as `amd.com/gpu`. Default: nvidia.com/gpu."
        ),
    )
    cpu: Float | None = Field(
        default=None,
        gt=0,
        le=192,
        description=(
            "CPUs that a workload asks for. Default: the namespace's; of `ecs` what is free, of `ray` one."
        ),
    )
    memory_gb: Float | None = Field(
        default=None,
        ge=0.5,
        le=4096,
        description=(
            "Memory in GiB that a workload asks for and may use, shared memory included; an instance has some"
            " hundred MiB less to give than its type says. Default: the namespace's; `ecs` needs it. `ray`"
            " does not bound what is used."
        ),
    )


class RayLauncherSettings(ShareLauncherSettings):
    """Keys of `kind: ray`: each workload is a job of a Ray cluster that exists."""

    SECRETS_BELONG = "set it where `ray start` runs on each machine"

    kind: str = Field(default="ray", description="Workloads run as jobs of a Ray cluster.")
    address: str = Field(
        pattern=r"^https?://[^\s/@]+$",
        description=(
            "The job server of the cluster's head, such as `http://head.internal:8265`. $RAY_AUTH_TOKEN is"
            " sent to it."
        ),
    )
    # Settings are frozen, so that a narrower type is safe.
    gpus: bool = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=True,
        description="Whether a job asks for a GPU for each of its processes; `false`: the CPU alone.",
    )

    @property
    def target(self) -> dict[str, Any]:
        """The cluster, and what a machine of it must have; a plan is made on one of them."""
        return {"kind": self.kind, **self.model_dump(include={"address", "gpus", "cpu", "memory_gb"})}


class ContainerLauncherSettings(BackendLauncherSettings):
    """Keys of the kinds that run containers of an image."""

    image: str = Field(
        max_length=255,
        pattern=r"^[^\s-]\S*@sha256:[0-9a-f]{64}$",
        description=(
            "Image by its digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version; of"
            " `sagemaker` and `ecs` in ECR. Its entry point runs its arguments."
        ),
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description=(
            "Pods or instances that share a training; each starts as many of launcher.processes as the"
            " others. Workloads that share no model take one, and `ecs` always does."
        ),
    )

    def nodes_of(self, processes: int) -> int:
        """Return how many pods or instances share a workload of so many processes."""
        return self.nodes if processes > 1 else 1

    @field_validator("nodes")
    @classmethod
    def _divides_processes(cls, nodes: int, info: ValidationInfo) -> int:
        processes = info.data.get("processes", nodes)
        if processes % nodes:
            raise ValueError(
                f"launcher.processes ({processes}) must be a multiple of it, as every one starts as many"
            )
        return nodes


class ClusterLauncherSettings(ContainerLauncherSettings, ShareLauncherSettings):
    """Keys of the kinds that run containers on machines of a cluster."""

    pending_minutes: Float = Field(
        default=60.0,
        gt=0,
        description=(
            "Time that a workload may wait for an instance and its image; after it the workload counts as one"
            " that lost its machine. Time that a Job is suspended by a queue does not count."
        ),
    )
    secrets: list[str] | dict[str, str] = Field(
        default_factory=list,
        description=(
            "Secrets that become variables of the workload, such as credentials of the store. Of `kubernetes`"
            " the names of Secrets, all of whose keys count; of `ecs` the ARN of each variable's secret in"
            " Secrets Manager or the Parameter Store."
        ),
    )


class KubernetesLauncherSettings(ClusterLauncherSettings):
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
        "service_account": "set pod: {spec: {serviceAccountName: ...}}",
        "gpu_resource": "set `gpus` to the name of the resource, or to false for the CPU alone",
        "memory": "set `memory_gb`: 64 in place of 64Gi",
    }
    SECRETS_BELONG = "put it into a Secret and name that in secrets"

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
            "What is added to the template of the pods, as Kubernetes writes it: `metadata` with labels (also"
            " of the Job, such as `kueue.x-k8s.io/queue-name`) and annotations, and `spec` with nodeSelector,"
            " affinity, tolerations, topologySpreadConstraints, priorityClassName, schedulerName,"
            " runtimeClassName, imagePullSecrets, hostAliases, dnsConfig, dnsPolicy, serviceAccountName (for"
            " rights on a cloud's storage; pods get no token for the cluster), and of securityContext the"
            " numbers of user and groups (10001 by default, never root)."
        ),
    )
    # Settings are frozen, so that a narrower type is safe.
    secrets: list[str] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=list, description="Names of Secrets whose keys become variables of the workload."
    )

    @property
    def gpu_resource(self) -> str | None:
        """The resource of which a pod asks for one for each of its processes; None for the CPU alone."""
        return self.gpus if isinstance(self.gpus, str) else "nvidia.com/gpu" if self.gpus else None

    @property
    def target(self) -> dict[str, Any]:
        """What a node must have; a plan is made on one of them."""
        return {
            "kind": self.kind,
            "node_selector": self.pod.get("spec", {}).get("nodeSelector", {}),
            "gpu_resource": self.gpu_resource,
            **self.model_dump(include={"cpu", "memory_gb"}),
        }

    @field_validator("pod")
    @classmethod
    def _leaves_the_workload_alone(cls, pod: dict[str, Any]) -> dict[str, Any]:
        for path, allowed_keys in _POD_KEYS.items():
            section: Any = pod
            for name in path:
                section = section.get(name, {})
            if not isinstance(section, dict):
                raise ValueError(f"{'.'.join(path)} is not a section with keys")
            for name in section.keys() - allowed_keys:
                raise ValueError(
                    f"{'.'.join((*path, name))} is not for a YAML to set, as image, command and mounts are"
                    f" the launcher's; allowed here: {', '.join(sorted(allowed_keys))}"
                )
        return pod


class AwsLauncherSettings(ContainerLauncherSettings):
    """Keys of the kinds that run containers by a service of Amazon, with a store on S3."""

    folder: _Folder = "."
    region: str | None = Field(default=None, description="AWS region. Default: that of the environment.")
    instance_type: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$",
        description=(
            "Type of the instances. `sagemaker` needs it, such as `ml.g5.xlarge`; of `ecs` such as"
            " `g5.xlarge`, if the cluster has several. The price of a job is that of its instances."
        ),
    )
    subnets: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="Subnets of your VPC. Default: the service's or host's own network.",
    )
    security_groups: list[str] = Field(
        default_factory=list,
        validate_default=True,
        max_length=5,
        description="Security groups in that VPC, which subnets need.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict, max_length=49, description="Tags of the jobs, for cost reports and policies."
    )

    @field_validator("security_groups")
    @classmethod
    def _belong_to_subnets(cls, groups: list[str], info: ValidationInfo) -> list[str]:
        if "subnets" in info.data and bool(groups) != bool(info.data["subnets"]):
            raise ValueError(
                "launcher.subnets and launcher.security_groups belong together; give both or none"
            )
        return groups


class SageMakerLauncherSettings(AwsLauncherSettings):
    """Keys of `kind: sagemaker`: Training Jobs of Amazon SageMaker, with a store on S3."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **LauncherSettings.REMOVED,
        "jobs": "every workload is a Training Job: remove the line",
        "max_wait_hours": "SageMaker waits 24 hours for spot instances: remove the line",
        "output_kms_key": "set $FULLFT_KMS_KEY, the store's own key",
    }
    SECRETS_BELONG = "give launcher.role_arn the right to what it opens"

    kind: str = Field(default="sagemaker", description="Workloads run as Training Jobs of Amazon SageMaker.")
    grace_seconds: Annotated[_Grace, Field(le=120)] = 100.0
    max_hours: Annotated[_Hours, Field(le=672)] = 24.0
    environment: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=90, description="Variables of the workload; no secrets."
    )
    # Settings are frozen, so that a narrower type is safe.
    instance_type: str = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$",
        description="Type of the instances, such as `ml.g5.xlarge` or `ml.p4d.24xlarge`.",
    )
    role_arn: str = Field(
        pattern=_ARN_OF_ROLE,
        description="Role of the container, which reads and writes the store.",
    )
    volume_gb: int = Field(
        default=100,
        ge=1,
        le=16_384,
        description=(
            "Disk of each instance in GB for inputs and checkpoints; instance types with local NVMe disks"
            " have those."
        ),
    )
    spot: bool = Field(
        default=False,
        description=(
            "Whether to train on spot instances. SageMaker starts an interrupted job again in its time."
        ),
    )
    network_isolation: bool = Field(
        default=False,
        description=(
            "Whether containers reach no network at all, the store neither: SageMaker mounts it for them to"
            " read and saves what they write. One instance alone."
        ),
    )
    volume_kms_key: str | None = Field(
        default=None,
        description=(
            "KMS key of the instances' disks. Instance types with local NVMe disks refuse one: their hardware"
            " encrypts."
        ),
    )

    @property
    def target(self) -> dict[str, Any]:
        """The type of the instances; a plan is made on one of them."""
        return {"kind": self.kind, "instance_type": self.instance_type}

    @field_validator("network_isolation")
    @classmethod
    def _is_of_one_instance(cls, is_isolated: bool, info: ValidationInfo) -> bool:
        if is_isolated and info.data.get("nodes", 1) > 1:
            raise ValueError("needs nodes: 1; set it to false in this section, or change that")
        return is_isolated


class EcsLauncherSettings(AwsLauncherSettings, ClusterLauncherSettings):
    """Keys of `kind: ecs`: tasks of Amazon ECS on GPU instances, with a store on S3."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        **LauncherSettings.REMOVED,
        "launch_type": "a task runs on EC2 instances of the cluster; for machines of your own set kind: ssh",
        "log_group": "the output is in the group /ecs/CLUSTER of CloudWatch Logs: make it, with the name of"
        " `cluster`",
        "shared_memory_gb": "/dev/shm may take half of memory_gb: remove the line",
    }
    SECRETS_BELONG = "put it into Secrets Manager and name that in launcher.secrets"

    kind: str = Field(default="ecs", description="Workloads run as tasks of Amazon ECS.")
    # Settings are frozen, so that a narrower type is safe.
    gpus: bool = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=True,
        description="Whether a task asks for a GPU for each of its processes; `false`: the CPU alone.",
    )
    # Settings are frozen, so that a narrower type is safe.
    memory_gb: Float = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        ge=0.5, le=4096, description="Memory in GiB that a task asks for and may use."
    )
    cluster: str = Field(
        default="fullft", pattern=r"^[A-Za-z0-9_-]{1,255}$", description="Name of the cluster."
    )
    capacity_provider: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,255}$",
        description=(
            "Capacity provider that starts instances for a task and takes them away after it, on spot"
            " capacity too. Default: instances that are in the cluster already."
        ),
    )
    task_role_arn: str = Field(
        pattern=_ARN_OF_ROLE,
        description="Role of the container, which reads and writes the store.",
    )
    execution_role_arn: str = Field(
        pattern=_ARN_OF_ROLE,
        description="Role with which ECS pulls the image, reads secrets and writes the log.",
    )
    # Settings are frozen, so that a narrower type is safe.
    secrets: dict[str, str] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=dict, description="The ARN of the secret of each variable of the workload."
    )

    @property
    def target(self) -> dict[str, Any]:
        """The properties that an instance must have; a plan is valid for instances with equal properties."""
        keys = {"capacity_provider", "instance_type", "gpus", "cpu", "memory_gb"}
        # Plans of stores from before are found by this key.
        return {"kind": self.kind, "launch_type": "EC2", **self.model_dump(include=keys)}

    @field_validator("nodes")
    @classmethod
    def _is_one(cls, nodes: int) -> int:
        if nodes > 1:
            raise ValueError("the processes of a training share one instance of ECS; set 1")
        return nodes


#: Sections by `kind`; any other kind is that of another package.
LAUNCHER_SECTIONS: dict[str, type[LauncherSettings]] = {
    "local": LauncherSettings,
    "ssh": SshLauncherSettings,
    "kubernetes": KubernetesLauncherSettings,
    "sagemaker": SageMakerLauncherSettings,
    "ecs": EcsLauncherSettings,
    "ray": RayLauncherSettings,
}


def launcher_section(values: Mapping[str, Any]) -> LauncherSettings:
    """Return the section `launcher` of the class that its `kind` chooses."""
    return _section_class(values).model_validate(values)


def recorded_section(values: Mapping[str, Any]) -> LauncherSettings:
    """Return a section `launcher` as a store has it, which may have been written by an earlier release."""
    section = _section_class(values)
    # A launcher of another package knows its own keys.
    return (
        section.model_validate(values) if section is OtherLauncherSettings else section.from_manifest(values)
    )


def _section_class(values: Mapping[str, Any]) -> type[LauncherSettings]:
    kind = values.get("kind", "local")
    return LAUNCHER_SECTIONS.get(kind if isinstance(kind, str) else "local", OtherLauncherSettings)


class ByKind:
    """Marks a section whose class its key `kind` chooses; errors keep the place in the YAML, which those of
    pydantic's unions do not.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._choose,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self._dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        sections = [*LAUNCHER_SECTIONS.values(), OtherLauncherSettings]
        return {"anyOf": [handler(section.__pydantic_core_schema__) for section in sections]}

    @staticmethod
    def _choose(value: Any, handler: Any) -> Any:
        return (
            value
            if isinstance(value, LauncherSettings)
            else launcher_section(value)
            if isinstance(value, Mapping)
            else handler(value)
        )

    @staticmethod
    def _dump(value: LauncherSettings | None, info: SerializationInfo) -> dict[str, Any] | None:
        return None if value is None else value.model_dump(mode=info.mode)


Elsewhere = Annotated[LauncherSettings | None, ByKind()]


class DataEngineSettings(Settings):
    """Where the rows of all batches are compared for a snapshot; all else stays in the run."""

    engine: Literal["native", "ray"] = Field(
        default="native",
        description=(
            "`native`: in the run's process; `ray`: on a Ray cluster, with the extra `ray`. The snapshot is"
            " the same."
        ),
    )
    address: str | None = Field(
        default=None,
        pattern=r"^ray://\S+:\d+$|\.ya?ml$",
        description=(
            "The cluster's address for clients, such as `ray://head.internal:10001`, or a file of the project"
            " with a RayCluster of KubeRay, which is made for the snapshot; `ray` needs it."
        ),
    )

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if (self.engine == "ray") != (self.address is not None):
            raise ValueError("engine: ray and address: ray://HOST:PORT or FILE.yaml belong together")
        return self


class ComputeSettings(Settings):
    """Workloads that run elsewhere than `launcher` says, which is where training runs: each of `ingestion`
    (documents, examples and chunks of a batch: one process, which reads documents.path itself; default: in
    the run, wherever `launcher` is), `planning` (plan, baselines and pilot, which measure the machine that
    they run on), `evaluation` (candidates) and `monitoring` (production documents are predicted, and drift is
    tested: one process) has a section with the keys of `launcher`.

    If a section is of the same kind as `launcher`, it needs only the keys that differ.
    """

    WORKLOADS: ClassVar[tuple[str, ...]] = ("ingestion", "planning", "evaluation", "monitoring")
    REMOVED: ClassVar[Mapping[str, str]] = {
        "prediction": "production documents are predicted where `monitoring` says",
    }

    ingestion: Elsewhere = Field(
        default=None,
        description=(
            "Where documents, examples and chunks of a batch are made: one process, which reads"
            " documents.path itself. Default: in the run, wherever `launcher` is."
        ),
    )
    planning: Elsewhere = Field(
        default=None,
        description="Where plan, baselines and pilot run. They measure the machine that they run on.",
    )
    evaluation: Elsewhere = Field(default=None, description="Where candidates are evaluated.")
    monitoring: Elsewhere = Field(
        default=None,
        description="Where production documents are predicted, and drift is tested: one process.",
    )
    data: DataEngineSettings = DataEngineSettings()

    def of(self, workload: str) -> LauncherSettings | None:
        """Return the section of a workload; None where it runs where training does."""
        section = "monitoring" if workload == "prediction" else workload
        return getattr(self, section) if section in self.WORKLOADS else None
