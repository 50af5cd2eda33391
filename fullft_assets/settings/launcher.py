"""The sections `launcher` and `compute`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

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
_SECRET = re.compile(r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?)(_|$)(?!FILE$|PATH$|DIR$)|(^|_)API_?KEY$", re.IGNORECASE)
#: Limits of SageMaker's Processing Jobs: hours, and characters of a variable's value.
_PROCESSING_HOURS, _PROCESSING_CHARACTERS = 216, 256

Retries = Annotated[
    int,
    Field(
        ge=0,
        le=20,
        description="How often a workload that was preempted, or lost its machine, is launched again in the same run; it resumes from its "
        "checkpoint.",
    ),
]


def _without_secret(environment: dict[str, str], instead: str) -> dict[str, str]:
    """Return the variables of a workload whose request others may read, or raise with what to do about a secret among them."""
    for name, value in environment.items():
        if _SECRET.search(name) or without_secrets(value) != value:
            raise ValueError(f"{name} is a secret, which everybody who may describe the job would see; {instead}")
    return environment


class LauncherSettings(Settings):
    """Where heavy work runs. These keys are those of every kind; a kind may have more of its own."""

    kind: str = Field(
        default="local",
        description="Where workloads run: `local` = supervised processes on this machine, `ssh` = another machine, `kubernetes` = Jobs of a cluster, `sagemaker` = Training Jobs of Amazon SageMaker, `ecs` = tasks of Amazon ECS, or the name of a launcher that a package adds.",
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
    max_hours: Float | None = Field(
        default=None,
        gt=0,
        description="Time after which a workload is stopped as if it were cancelled; the same command resumes it. Default: none.",
    )
    max_retries: Retries = 0
    orphan_hours: Float | None = Field(
        default=1.0,
        ge=0,
        description="Time after the end of its run after which a job that no other run has attached to is stopped as if it were cancelled, so "
        "that nothing is paid for unseen; the next run resumes it. Jobs of `local` end with their run. `null`: never.",
    )
    spot_notice: Literal["none", "aws"] = Field(
        default="none",
        description="Where training looks for the interruption notice of a spot instance, on which it writes a checkpoint: `aws` = EC2's "
        "instance metadata, also for a task of ECS, which does not stop it then. Kubernetes and SageMaker send SIGTERM, which training always handles.",
    )
    spot_poll_seconds: Float = Field(
        default=5.0, gt=0, le=30, description="Time between two looks for a spot notice, which comes two minutes before the interruption."
    )

    @property
    def max_seconds(self) -> float | None:
        """`max_hours` in seconds."""
        return None if self.max_hours is None else self.max_hours * 3600

    @property
    def target(self) -> dict[str, Any]:
        """What of the section names the machines: a plan is made for them. None of it depends on the machine that reads the YAML."""
        return {"kind": self.kind, **(self.model_extra or {})}

    @property
    def pool(self) -> str:
        """The pool of Dagster whose slots runs of this launcher wait for: what another machine does holds nothing up on this one."""
        return "gpu" if self.kind == "local" else self.kind


class SshLauncherSettings(LauncherSettings):
    """Keys of `kind: ssh`: a GPU machine of one's own, reached with the system's `ssh`."""

    kind: str = Field(default="ssh", description="Workloads run on another machine.")
    host: str = Field(pattern=r"^[^-\s]\S*$", description="Name or address of the machine, or a `Host` of your `~/.ssh/config`.")
    user: str | None = Field(
        default=None,
        description="User there. Default: what `~/.ssh/config` says, else your own name.",
    )
    port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port of its SSH server. Default: what `~/.ssh/config` says, else 22."
    )
    key_file: str | None = Field(
        default=None,
        description="Private key without a passphrase: an absolute path, or one from `~`. Default: those that `ssh` finds, an agent's included.",
    )
    known_hosts: str | None = Field(
        default=None,
        description="File with the machine's host key, which is always checked: an absolute path, or one from `~`. Default: `~/.ssh/known_hosts`.",
    )
    python: str = Field(
        default="python3", description="Python there that has fullft_assets in the same version, such as `/srv/fullft/.venv/bin/python`."
    )
    folder: str | None = Field(
        default=None,
        description="The project's folder there: where relative paths of this YAML start, such as `base_model`. Default: the same path as here.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Variables of the workload there, such as AWS_ENDPOINT_URL or CUDA_VISIBLE_DEVICES; no secrets, which belong to that machine.",
    )
    more_hosts: list[Annotated[str, Field(pattern=r"^[^-\s]\S*$")]] = Field(
        default_factory=list,
        max_length=63,
        description="More machines that share a training with `host`, the first of them; each starts as many of launcher.processes as the "
        "others. The keys of this section hold for all of them. Other workloads run on `host` alone.",
    )
    rendezvous_address: str | None = Field(
        default=None,
        pattern=r"^[^-\s]\S*$",
        description="Name or address by which more_hosts reach `host`. Default: `host`, which must not be an alias of `~/.ssh/config` then.",
    )
    rendezvous_port: int = Field(
        default=29_500, ge=1, le=65_535, description="Port of `host` on which the processes of more_hosts find those of `host`."
    )
    max_retries: Retries = 2

    @property
    def target(self) -> dict[str, Any]:
        """The machine that plans run on; how it is reached from here is no part of a plan."""
        return {"kind": self.kind, "host": self.host}

    @field_validator("more_hosts")
    @classmethod
    def _share_processes(cls, hosts: list[str], info: ValidationInfo) -> list[str]:
        processes, num_hosts = info.data.get("processes", 1), len(hosts) + 1
        if len({*hosts, info.data.get("host")}) < num_hosts:
            raise ValueError("names a machine twice, or `host` again")
        if hosts and processes % num_hosts:
            raise ValueError(f"launcher.processes ({processes}) must be a multiple of the {num_hosts} machines, as each starts as many")
        return hosts

    @property
    def pool(self) -> str:
        """One pool for each machine."""
        return f"ssh/{self.host}"


class KubernetesLauncherSettings(LauncherSettings):
    """Keys of `kind: kubernetes`: each workload is an Indexed Job of a cluster."""

    kind: str = Field(default="kubernetes", description="Workloads run as Jobs of a Kubernetes cluster.")
    context: str | None = Field(
        default=None, description="Context of your kubeconfig. Default: the cluster of the pod that launches, else the current context."
    )
    namespace: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Namespace of the Jobs.")
    image: str = Field(
        pattern=r"^[^\s-]\S*$",
        description="Image by its digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version. Its entry point runs its arguments.",
    )
    allow_tags: bool = Field(default=False, description="Whether `image` may have no digest; a tag can be another image tomorrow.")
    image_pull_secrets: list[str] = Field(default_factory=list, description="Names of the Secrets with which the image is pulled.")
    python: str = Field(default="python", description="Python in the image that has fullft_assets.")
    folder: str | None = Field(
        default=None,
        description="The project's folder in the image: where relative paths of this YAML start, such as `base_model`. Default: the same path as here.",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pods that share a training; each starts as many of launcher.processes as the others. Other workloads take one pod.",
    )
    gpu_resource: str | None = Field(
        default="nvidia.com/gpu", description="Resource of which a pod asks for one for each of its processes. `null`: the CPU alone."
    )
    cpu: str | int | None = Field(default=None, description="CPU that each pod asks for, such as `8`. Default: the namespace's.")
    memory: str | None = Field(
        default=None,
        description="Memory that each pod asks for and may use, shared memory included, such as `64Gi`. Default: the namespace's.",
    )
    shared_memory: str = Field(
        default="2Gi", description="Size of /dev/shm, in which the processes of a pod share memory; it counts as memory of the pod."
    )
    claims: dict[str, str] = Field(
        default_factory=dict,
        description="Persistent volume claims by name, and where each is mounted: base models, a store in a folder, `$FULLFT_CACHE`.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a node must have: the kind of its GPU, or spot capacity."
    )
    tolerations: list[dict[str, str | int]] = Field(
        default_factory=list, description="Taints of nodes that are no obstacle, as Kubernetes writes them: key, operator, value, effect."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of Job and pods, such as `kueue.x-k8s.io/queue-name`, with which Kueue admits the Job."
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations of Job and pods.")
    service_account: str | None = Field(
        default=None, description="Service account of the pods, for rights on a cloud's storage; they get no token for the cluster."
    )
    run_as: int = Field(default=10_001, ge=1, description="Number of the user and group that the workload runs as; never root.")
    secrets: list[str] = Field(
        default_factory=list, description="Names of Secrets whose keys become variables of the workload, such as credentials of the store."
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Variables of the workload, such as AWS_ENDPOINT_URL; no secrets: whoever may describe the Job can read them.",
    )
    pending_minutes: Float = Field(
        default=60.0,
        gt=0,
        description="Time that pods may wait for nodes and images; after it the workload counts as one that lost its machine. Time that a Job is "
        "suspended by a queue does not count.",
    )
    max_hours: Float | None = Field(
        default=24.0,
        gt=0,
        description="Time after which the cluster stops a workload as if it were cancelled, also if nobody follows it; the same command resumes it. "
        "`null`: none.",
    )
    max_retries: Retries = 2

    @property
    def target(self) -> dict[str, Any]:
        """What a node must have; a plan is made on one of them."""
        return {"kind": self.kind, **self.model_dump(include={"node_selector", "gpu_resource", "cpu", "memory"})}

    @field_validator("environment")
    @classmethod
    def _has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        return _without_secret(environment, "put it into a Secret and name that in secrets")

    @model_validator(mode="after")
    def _is_possible(self) -> KubernetesLauncherSettings:
        if not self.allow_tags and not re.search(r"@sha256:[0-9a-f]{64}$", self.image):
            raise ValueError(f"image {self.image} has no digest: write it as REPOSITORY@sha256:..., or set allow_tags: true")
        if self.processes % self.nodes:
            raise ValueError(f"processes ({self.processes}) must be a multiple of nodes ({self.nodes}): every pod starts as many")
        return self


class AwsLauncherSettings(LauncherSettings):
    """Keys of the kinds that run containers of an image by a service of Amazon, with a store on S3."""

    image: str = Field(
        max_length=255,
        pattern=r"^\S+@sha256:[0-9a-f]{64}$",
        description="Image in ECR by its digest, `REPOSITORY@sha256:...`, with fullft_assets in the same version.",
    )
    python: str = Field(default="python", description="Python in the image that has fullft_assets.")
    folder: str = Field(
        default=".",
        description="The project's folder in the image: where relative paths of this YAML start, such as `base_model`. Default: its working directory.",
    )
    region: str | None = Field(default=None, description="AWS region. Default: that of the environment.")
    subnets: list[str] = Field(
        default_factory=list, max_length=16, description="Subnets of your VPC. Default: the service's or host's own network."
    )
    security_groups: list[str] = Field(
        default_factory=list, validate_default=True, max_length=5, description="Security groups in that VPC, which subnets need."
    )
    tags: dict[str, str] = Field(default_factory=dict, max_length=49, description="Tags of the jobs, for cost reports and policies.")
    max_retries: Retries = 2

    @field_validator("security_groups")
    @classmethod
    def _belong_to_subnets(cls, groups: list[str], info: ValidationInfo) -> list[str]:
        if "subnets" in info.data and bool(groups) != bool(info.data["subnets"]):
            raise ValueError("launcher.subnets and launcher.security_groups belong together; give both or none")
        return groups


class SageMakerLauncherSettings(AwsLauncherSettings):
    """Keys of `kind: sagemaker`: Training Jobs or Processing Jobs of Amazon SageMaker, with a store on S3."""

    kind: str = Field(default="sagemaker", description="Workloads run as Training Jobs of Amazon SageMaker.")
    jobs: Literal["training", "processing"] = Field(
        default="training",
        description="Kind of SageMaker's jobs: `training` = Training Jobs, `processing` = Processing Jobs, which a section of `compute` may "
        "choose, such as that of `ingestion`: one instance, never a spot one.",
    )
    instance_type: str = Field(
        pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$", description="Type of the instances, such as `ml.g5.xlarge` or `ml.p4d.24xlarge`."
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Instances that share a training; each starts as many of launcher.processes as the others. Other workloads take one.",
    )
    role_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$", description="Role of the container, which reads and writes the store."
    )
    volume_gb: int = Field(
        default=100,
        ge=1,
        le=16_384,
        description="Disk of each instance in GB for inputs and checkpoints; instance types with local NVMe disks have those.",
    )
    max_hours: Float | None = Field(
        default=24.0,
        gt=0,
        description="Time after which SageMaker stops a workload as if it were cancelled; the same command resumes it. `null`: SageMaker's maximum, "
        "28 days, of a Processing Job 9.",
    )
    grace_seconds: Float = Field(
        default=100.0,
        ge=0,
        description="Time that a stopped workload has to finish its optimizer step and write its checkpoint; SageMaker kills a container after 120 s, so that more is refused.",
    )
    spot: bool = Field(
        default=False, description="Whether to train on spot instances. SageMaker starts an interrupted job again in its time."
    )
    max_wait_hours: Float = Field(
        default=24.0,
        ge=0,
        le=672,
        description="Time that SageMaker may wait for spot instances, beside launcher.max_hours; after it the workload counts as preempted.",
    )
    network_isolation: bool = Field(
        default=False,
        description="Whether containers reach no network at all, the store neither: SageMaker mounts it for them to read and saves what they write. "
        "One instance, and Training Jobs alone.",
    )
    volume_kms_key: str | None = Field(
        default=None,
        description="KMS key of the instances' disks. Instance types with local NVMe disks refuse one: their hardware encrypts.",
    )
    output_kms_key: str | None = Field(
        default=None, description="KMS key of what SageMaker itself writes to S3. The store's own is $FULLFT_KMS_KEY."
    )
    environment: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict,
        max_length=90,
        description="Variables of the workload; no secrets: whoever may describe the job can read them.",
    )

    @property
    def target(self) -> dict[str, Any]:
        """The type of the instances; a plan is made on one of them."""
        return {"kind": self.kind, "instance_type": self.instance_type}

    @field_validator("environment")
    @classmethod
    def _is_public_and_fits(cls, environment: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for name, value in environment.items():
            if info.data.get("jobs") == "processing" and len(value) > _PROCESSING_CHARACTERS:
                raise ValueError(f"{name}: a variable of a Processing Job has {_PROCESSING_CHARACTERS} characters at most")
        return _without_secret(environment, "give launcher.role_arn the right to what it opens")

    @field_validator("network_isolation")
    @classmethod
    def _is_of_one_training_job(cls, is_isolated: bool, info: ValidationInfo) -> bool:
        if is_isolated and (info.data.get("jobs") == "processing" or info.data.get("nodes", 1) > 1):
            raise ValueError("needs nodes: 1 and jobs: training; set it to false in this section, or change them")
        return is_isolated

    @model_validator(mode="after")
    def _ends_in_time(self) -> SageMakerLauncherSettings:
        if self.jobs == "processing" and self.max_hours is not None and self.max_hours > _PROCESSING_HOURS:
            raise ValueError(f"max_hours: SageMaker gives a Processing Job {_PROCESSING_HOURS} at most")
        return self

    @field_validator("grace_seconds", "max_hours")
    @classmethod
    def _is_within_limits(cls, value: float | None, info: ValidationInfo) -> float | None:
        limit = {"grace_seconds": 120, "max_hours": 672}[str(info.field_name)]
        if value is not None and value > limit:
            raise ValueError(f"SageMaker gives {limit} at most")
        return value

    @field_validator("nodes")
    @classmethod
    def _divides_processes(cls, nodes: int, info: ValidationInfo) -> int:
        processes = info.data.get("processes", nodes)
        if processes % nodes:
            raise ValueError(f"launcher.processes ({processes}) must be a multiple of it, as every instance starts as many")
        return nodes


class EcsLauncherSettings(AwsLauncherSettings):
    """Keys of `kind: ecs`: tasks of Amazon ECS on GPU instances, with a store on S3."""

    kind: str = Field(default="ecs", description="Workloads run as tasks of Amazon ECS.")
    cluster: str = Field(default="fullft", pattern=r"^[A-Za-z0-9_-]{1,255}$", description="Name of the cluster.")
    capacity_provider: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,255}$",
        description="Capacity provider that starts instances for a task and takes them away after it, on spot capacity too. "
        "Default: instances that are in the cluster already.",
    )
    launch_type: Literal["EC2", "EXTERNAL"] = Field(
        default="EC2",
        description="Of instances that are in the cluster already: of EC2, or machines of your own that are registered (`EXTERNAL`).",
    )
    instance_type: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$",
        description="Type of instance that a task needs, such as `g5.xlarge`, if the cluster has several. Its price is that of `fullft jobs`.",
    )
    nodes: int = Field(default=1, ge=1, description="One: the processes of a training share one instance.")
    gpus: bool = Field(default=True, description="Whether a task asks for a GPU for each of its processes; `false`: the CPU alone.")
    cpu: Float | None = Field(default=None, gt=0, le=192, description="CPUs that a task asks for. Default: none; it may use what is free.")
    memory_gb: Float = Field(
        ge=0.5,
        le=4096,
        description="Memory in GiB that a task asks for and may use; an instance has some hundred MiB less to give than its type says.",
    )
    shared_memory_gb: Float = Field(
        default=2.0,
        gt=0,
        le=1024,
        description="Size of /dev/shm in GiB, in which the processes of a task share memory; it counts as its memory.",
    )
    task_role_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$", description="Role of the container, which reads and writes the store."
    )
    execution_role_arn: str = Field(
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$",
        description="Role with which ECS pulls the image, reads secrets and writes the log.",
    )
    log_group: str = Field(
        default="/ecs/fullft",
        pattern=r"^[.\-_/#A-Za-z0-9]{1,512}$",
        description="Group of CloudWatch Logs for the output; it has to be there.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of the workload; no secrets: whoever may describe the task can read them."
    )
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="Variables of the workload whose values ECS reads from Secrets Manager or the Parameter Store: the ARN of each.",
    )
    pending_minutes: Float = Field(
        default=60.0,
        gt=0,
        description="Time that a task may wait for an instance and its image; after it the workload counts as one that lost its machine.",
    )
    max_hours: Float | None = Field(
        default=24.0,
        gt=0,
        description="Time after which the container stops a workload as if it were cancelled, also if nobody follows it; the same command "
        "resumes it. `null`: none.",
    )

    @property
    def target(self) -> dict[str, Any]:
        """What an instance must be; a plan is made on one of them."""
        keys = {"capacity_provider", "launch_type", "instance_type", "gpus", "cpu", "memory_gb"}
        return {"kind": self.kind, **self.model_dump(include=keys)}

    @field_validator("environment")
    @classmethod
    def _has_no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        return _without_secret(environment, "put it into Secrets Manager and name that in launcher.secrets")

    @field_validator("capacity_provider")
    @classmethod
    def _has_gpus(cls, provider: str | None) -> str | None:
        if provider is not None and provider.startswith("FARGATE"):
            raise ValueError("Fargate has no GPUs; name a capacity provider of EC2 instances")
        return provider

    @field_validator("nodes")
    @classmethod
    def _is_one(cls, nodes: int) -> int:
        if nodes > 1:
            raise ValueError("a training on ECS has one instance; use kind: kubernetes, sagemaker or ssh for several")
        return nodes


class OtherLauncherSettings(LauncherSettings):
    """The section of a launcher from another package, whose own class checks its keys."""

    model_config = ConfigDict(extra="allow")


#: Sections by `kind`; any other kind is that of another package.
LAUNCHER_SECTIONS: dict[str, type[LauncherSettings]] = {
    "local": LauncherSettings,
    "ssh": SshLauncherSettings,
    "kubernetes": KubernetesLauncherSettings,
    "sagemaker": SageMakerLauncherSettings,
    "ecs": EcsLauncherSettings,
}


def launcher_section(given: Mapping[str, Any]) -> LauncherSettings:
    """Return the section `launcher` of the class that its `kind` chooses."""
    kind = given.get("kind", "local")
    return LAUNCHER_SECTIONS.get(kind if isinstance(kind, str) else "local", OtherLauncherSettings).model_validate(given)


class ByKind:
    """Marks a section whose class its key `kind` chooses; errors keep the place in the YAML, which those of pydantic's unions do not."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._choose,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self._dump, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        sections = [*LAUNCHER_SECTIONS.values(), OtherLauncherSettings]
        return {"anyOf": [handler(section.__pydantic_core_schema__) for section in sections]}

    @staticmethod
    def _choose(value: Any, handler: Any) -> Any:
        if isinstance(value, LauncherSettings):
            return value
        return launcher_section(value) if isinstance(value, Mapping) else handler(value)

    @staticmethod
    def _dump(value: LauncherSettings | None, info: SerializationInfo) -> dict[str, Any] | None:
        return None if value is None else value.model_dump(mode=info.mode)


Elsewhere = Annotated[LauncherSettings | None, ByKind()]


class ComputeSettings(Settings):
    """Workloads that run elsewhere than `launcher` says, which is where training runs.

    Each has a section with the keys of `launcher`; if it is of the same kind, it needs only the keys that differ.
    """

    ingestion: Elsewhere = Field(
        default=None,
        description="Where documents, examples and chunks of a batch are made: one process, which reads documents.path itself. Default: in the "
        "run, wherever `launcher` is.",
    )
    planning: Elsewhere = Field(default=None, description="Where plan, baselines and pilot run. They measure the machine that they run on.")
    evaluation: Elsewhere = Field(default=None, description="Where candidates are evaluated: one process.")
    prediction: Elsewhere = Field(default=None, description="Where production documents are predicted: one process.")
    monitoring: Elsewhere = Field(default=None, description="Where drift is tested: one process.")

    def of(self, workload: str) -> LauncherSettings | None:
        """Return the section of a workload; None where it runs where training does."""
        return getattr(self, workload) if workload in type(self).model_fields else None
