"""The Job of the launcher `kubernetes`: what is sent to the cluster, and what the answers about it and its
pods mean.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from fullft_assets.jobs.launch import LAUNCH_ID, PROJECT_ROOT, RUN_ID
from fullft_assets.launchers.base import LaunchSpec, Status
from fullft_assets.launchers.container import command, stop_seconds
from fullft_assets.launchers.machine import REACHED_LIMIT, ending
from fullft_assets.settings import KubernetesLauncherSettings

#: Label of everything that this launcher makes.
MANAGED_BY = {"app.kubernetes.io/managed-by": "fullft"}
#: Headless Service of the namespace, which gives pods that share a training their host names. `fullft` is
#: that of Dagster's code location.
SERVICE = "fullft-pods"
CONTAINER = "workload"
#: User and group of the image.
_USER = 10_001
#: Where Kubernetes reads a container's last words, 4,096 bytes at most.
MESSAGE = "/dev/termination-log"
#: Resource whose units torch has to see in the pod; of those of other names it may see another number.
_GPU = "nvidia.com/gpu"
#: Of the first pod, on which the pods of a training meet.
_PORT = 29_500
#: They wait for each other so much longer than `launcher.pending_minutes`.
_MEET_SECONDS = 300.0
#: An ended Job that nobody collects is kept for so long.
_KEEP_SECONDS = 7 * 24 * 3600
#: A pod of a node that does not answer is being deleted for ever; after so long beyond its grace time the
#: node counts as lost.
_LOST_SECONDS = 60.0
#: Reasons of a pod's failure that are the node's or the cluster's.
_PREEMPTED = frozenset(
    {
        "Evicted",
        "Preempted",
        "Preempting",
        "NodeShutdown",
        "Terminated",
        "Shutdown",
        "NodeLost",
        "NodeAffinity",
    }
)
#: Reasons for which a container waits, and the key that may be wrong. A registry that is busy, or a node that
#: is new, has them for a while: only some of them, and what is said to be absent, end the wait at once.
_CANNOT_START = {
    "ErrImagePull": "launcher.image or imagePullSecrets of launcher.pod",
    "ImagePullBackOff": "launcher.image or imagePullSecrets of launcher.pod",
    "ErrImageNeverPull": "launcher.image",
    "InvalidImageName": "launcher.image",
    "ImageInspectError": "launcher.image",
    "CreateContainerConfigError": "launcher.secrets",
    "CreateContainerError": "launcher",
}
#: Those of them that no waiting changes.
_NEVER_STARTS = frozenset({"ErrImageNeverPull", "InvalidImageName"})
#: What is said of an image or a Secret that is not there, and of one that may not be read.
_ABSENT = ("not found", "manifest unknown")
_REFUSED = re.compile(
    r"unauthorized|denied|forbidden|authorization failed|couldn't find key|no basic auth"
    r"|persistentvolumeclaim .* not found",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = "OOMKilled"


def manifest(spec: LaunchSpec, settings: KubernetesLauncherSettings) -> dict[str, Any]:
    """Return the Job of a workload."""
    nodes = settings.nodes_of(spec.processes)
    metadata = settings.pod.get("metadata", {})
    labels = {**metadata.get("labels", {}), **MANAGED_BY}
    annotations = metadata.get("annotations", {})
    job: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        # The driver tries again, by the class of the failure.
        "backoffLimit": 0,
        # Says so on the Job itself: the pod may be gone before anybody looks.
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
            ]
        },
        "ttlSecondsAfterFinished": _KEEP_SECONDS,
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": _pod(spec, settings, nodes),
        },
    }
    if settings.max_seconds is not None:
        # The pod's own supervisor keeps the limit, with time for a checkpoint; this ends what does not even
        # do that.
        job["activeDeadlineSeconds"] = math.ceil(
            settings.max_seconds + settings.pending_minutes * 60
        ) + stop_seconds(settings)
    about = {
        "name": spec.name,
        "namespace": settings.namespace,
        "labels": labels,
        "annotations": annotations,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": job}


def _pod(spec: LaunchSpec, settings: KubernetesLauncherSettings, nodes: int) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    volumes += [
        {"name": f"claim-{n}", "persistentVolumeClaim": {"claimName": name}}
        for n, name in enumerate(settings.claims)
    ]
    added: dict[str, Any] = settings.pod.get("spec", {})
    pod: dict[str, Any] = {
        **added,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": stop_seconds(settings),
        # A workload has no business with the cluster.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), _USER),
            **added.get("securityContext", {}),
            # Else each file of a large volume is looked at before the pod starts.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, settings, nodes)],
        "volumes": volumes,
    }
    if nodes > 1:
        pod["subdomain"] = SERVICE
    return pod


def _container(spec: LaunchSpec, settings: KubernetesLauncherSettings, nodes: int) -> dict[str, Any]:
    variables = {**settings.environment, **spec.environment, LAUNCH_ID: spec.name, RUN_ID: spec.run_id}
    variables |= {} if settings.folder is None else {PROJECT_ROOT: settings.folder}
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if settings.cpu is not None:
        requests["cpu"] = f"{settings.cpu:g}"
    if settings.memory_gb is not None:
        requests["memory"] = limits["memory"] = f"{round(settings.memory_gb * 1024)}Mi"
    if settings.gpu_resource is not None:
        limits[settings.gpu_resource] = str(spec.processes // nodes)
    mounts = ["/dev/shm", *settings.claims.values()]
    names = ["shared-memory", *(f"claim-{n}" for n in range(len(settings.claims)))]
    return {
        "name": CONTAINER,
        "image": settings.image,
        "args": _arguments(spec, settings, nodes),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "envFrom": [{"secretRef": {"name": name}} for name in settings.secrets],
        "resources": {"requests": requests, "limits": limits},
        "terminationMessagePath": MESSAGE,
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in zip(names, mounts, strict=True)],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _arguments(spec: LaunchSpec, settings: KubernetesLauncherSettings, nodes: int) -> list[str]:
    processes = spec.processes // nodes
    gpus = processes if settings.gpu_resource == _GPU else 0
    if nodes == 1:
        return command(settings.python, settings, gpus, spec.arguments, message=MESSAGE)
    return command(
        settings.python,
        settings,
        gpus,
        ["-m", spec.module, *spec.job],
        message=MESSAGE,
        hosts=[f"{spec.name}-{index}.{SERVICE}" for index in range(nodes)],
        port=_PORT,
        # The driver's limit for nodes that do not come is the first.
        patience=math.ceil(settings.pending_minutes * 60 + _MEET_SECONDS),
        processes=processes,
    )


def status_of(
    job: dict[str, Any],
    pods: Sequence[dict[str, Any]],
    now: datetime,
    settings: KubernetesLauncherSettings,
) -> Status:
    """Return how far a Job is.

    Args:
        now: by the cluster's clock.
    """
    if (ended := end_of(job)) is not None:
        if ended["type"] == "Failed" and "deletionTimestamp" in job["metadata"]:
            return Status("running")  # somebody deletes it, which is why it failed; it is gone soon
        return Status("succeeded") if ended["type"] == "Complete" else _failure(ended, pods)
    if job["spec"].get("suspend"):  # a queue of the cluster has not admitted it, or has taken its nodes back
        return Status("pending")
    for pod in pods:
        if (problem := _cannot_go_on(pod, now)) is not None:
            return problem
    waiting = [pod for pod in pods if pod["status"]["phase"] == "Pending"]
    nothing = f"no pod was made; `kubectl describe job -n {settings.namespace}` says why"
    why = next((_waits_for(pod) for pod in waiting), nothing)
    began = datetime.fromisoformat(job["status"].get("startTime") or now.isoformat())
    is_late = (now - began).total_seconds() > settings.pending_minutes * 60
    if is_late and (waiting or len(pods) < job["spec"]["completions"]):
        line = f"waited longer than launcher.pending_minutes ({settings.pending_minutes:g}): {why}"
        return Status("failed", line, "settings" if _REFUSED.search(why) else "infrastructure")
    return Status("running") if len(waiting) < len(pods) else Status("pending", why if waiting else "")


def end_of(job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the condition of a Job that has ended; None for another one."""
    conditions = job["status"].get("conditions", ())
    return next(
        (each for each in conditions if each["type"] in ("Complete", "Failed") and each["status"] == "True"),
        None,
    )


def _cannot_go_on(pod: dict[str, Any], now: datetime) -> Status | None:
    for state in _states(pod):
        waiting = state.get("waiting", {})
        reason = waiting.get("reason", "")
        # A runtime that cannot make a container says `not found` of things of its own.
        is_absent = reason != "CreateContainerError" and any(
            sign in waiting.get("message", "") for sign in _ABSENT
        )
        if reason in _NEVER_STARTS or (reason in _CANNOT_START and is_absent):
            line = f"the pod cannot start: {_waits_for(pod)}; set {_CANNOT_START[reason]}"
            return Status("failed", line, "settings", is_own_line=True)
    until = pod["metadata"].get("deletionTimestamp")
    if until is not None and (now - datetime.fromisoformat(until)).total_seconds() > _LOST_SECONDS:
        return Status(
            "failed", f"lost its node {pod['spec'].get('nodeName', '')}, which does not answer", "preemption"
        )
    return None


def _failure(condition: dict[str, Any], pods: Sequence[dict[str, Any]]) -> Status:
    ends = sorted(
        (
            end
            for pod in pods
            for state in _states(pod)
            if (end := state.get("terminated", {})).get("exitCode", 0) != 0
        ),
        key=lambda end: end.get("finishedAt") or "",
    )
    ended = [_ending_of(end) for end in ends]
    disruptions = [why for pod in pods if (why := _disruption(pod))]
    if condition.get("reason") == "PodFailurePolicy" or disruptions:
        why = disruptions[0] if disruptions else condition.get("message", "")
        reason = f"was preempted: {' '.join(why.split())[:300]}"
        return next(
            (end for end in ended if end.is_own_line and end.failure == "preemption"),
            Status("failed", reason, "preemption"),
        )
    if condition.get("reason") == "DeadlineExceeded":
        return REACHED_LIMIT
    # A host that lost another one fails, too, but later: within a second, what the cluster has stopped is no
    # cause. A host whose memory ran out may end last.
    ended.sort(key=lambda end: {"out_of_memory": 0, "preemption": 2}.get(end.failure, 1))
    lost = (
        f"lost its pods ({condition.get('reason')}: {' '.join(condition.get('message', '').split())[:300]})"
    )
    if not ended:
        return Status("failed", lost, "infrastructure")
    return ended[0]


def _ending_of(end: dict[str, Any]) -> Status:
    if end.get("reason") == _OUT_OF_MEMORY:
        return Status("failed", "was killed: it took more than launcher.memory_gb; raise it", "out_of_memory")
    try:
        return Status(**json.loads(end.get("message") or ""))
    except (TypeError, ValueError):  # killed before it could say anything, or never started
        pass
    if end.get("reason") in ("StartError", "ContainerCannotRun"):
        line = (
            f"the container cannot start: {' '.join(end.get('message', '').split())[:300]}; set"
            " launcher.python and launcher.image"
        )
        return Status("failed", line, "settings", is_own_line=True)
    return Status("failed", *ending(end["exitCode"]))


def _disruption(pod: dict[str, Any]) -> str:
    status = pod["status"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return f"{status['reason']}: {status.get('message', '')}" if status.get("reason") in _PREEMPTED else ""


def is_leaving(pod: dict[str, Any]) -> bool:
    """Return whether a pod is being deleted or taken away: its node may not answer."""
    return "deletionTimestamp" in pod["metadata"] or bool(_disruption(pod))


def has_output(pod: dict[str, Any]) -> bool:
    """Return whether a pod's container has started."""
    return any("running" in state or "terminated" in state for state in _states(pod))


def index_of(pod: dict[str, Any]) -> int:
    """Return the place of a pod among those that share the work."""
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def _states(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (container.get("state", {}) for container in pod["status"].get("containerStatuses", ()))


def _waits_for(pod: dict[str, Any]) -> str:
    conditions = pod["status"].get("conditions", ())
    said = [
        each.get("message", "")
        for each in conditions
        if each["type"] == "PodScheduled" and each["status"] == "False"
    ]
    said += [
        f"{waiting['reason']}: {waiting.get('message', '')}"
        for state in _states(pod)
        if (waiting := state.get("waiting", {})).get("reason") in _CANNOT_START
    ]
    return " ".join(" ".join(said).split())[-300:] or "its image was not there"
