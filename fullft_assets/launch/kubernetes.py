"""The launcher `kubernetes`: each workload is an Indexed Job of a cluster, which goes on whatever happens to
the run that launched it.

The client library is imported only where it is used. Reads and deletions that the API server does not answer
are repeated here for some seconds, and by the driver for half an hour; a creation is repeated only after a
look whether it was done.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from fullft_assets.errors import WorkloadError
from fullft_assets.extras import require
from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status, Unreachable, awaited
from fullft_assets.launch.container import command, stop_seconds, variables
from fullft_assets.launch.machine import REACHED_LIMIT, ending
from fullft_assets.settings import KubernetesLauncherSettings

#: Label of everything that this launcher makes.
MANAGED_BY = {"app.kubernetes.io/managed-by": "fullft"}
#: Headless Service of the namespace, which gives pods that share a training their host names. `fullft` is
#: that of Dagster's code location.
SERVICE = "fullft-pods"
CONTAINER = "workload"
#: Where Kubernetes reads a container's last words, 4,096 bytes at most.
MESSAGE = "/dev/termination-log"
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
#: What is said of an image or a Secret that may not be read.
_REFUSED = re.compile(
    r"unauthorized|denied|forbidden|authorization failed|couldn't find key|no basic auth"
    r"|persistentvolumeclaim .* not found",
    re.IGNORECASE,
)
#: Time between two looks at a Job whose end is waited for.
_LOOK_SECONDS = 5.0
#: Time to connect, and to wait for an answer.
_TIMEOUTS = (15.0, 60.0)
_BACKOFF_SECONDS = 0.5
#: Answers that say that another try may be answered.
_TRANSIENT = (429, 500, 502, 503, 504)
#: A node's clock may differ from the API server's by so much.
_CLOCK_SECONDS = 60.0
#: Most characters of output in one answer.
_MAX_CHARACTERS = 1_000_000


class KubernetesLauncher(Launcher):
    """Runs workloads in a Kubernetes cluster."""

    settings: KubernetesLauncherSettings
    settings_class = KubernetesLauncherSettings

    @property
    def place(self) -> str:
        return f"{self.settings.namespace}@{self._service['metadata']['uid'][:8]}"

    @property
    def _namespace(self) -> str:
        return f"{self.settings.context or 'Kubernetes'}/{self.settings.namespace}"

    def submit(self, spec: LaunchSpec) -> None:
        job = self._job(spec.name)
        if job is not None and end_of(job):
            self.stop(spec.name)
            job = None
        if job is None:
            created = self._ask(
                self._apis.batch.create_namespaced_job,
                body=manifest(spec, self.settings),
                field_validation="Strict",
                absent=(HTTPStatus.CONFLICT,),
            )
            # Created by somebody else meanwhile, or by a request whose answer was lost.
            if created is None and self._job(spec.name) is None:
                raise Unreachable(f"{self._namespace}: a Job {spec.name} is being deleted")

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        return awaited(partial(self._status, name), wait_seconds, _LOOK_SECONDS)

    def logs(self, name: str, cursor: str) -> Logs:
        """Return the output of a Job's pods after a cursor, which has for each pod the newest time stamp and
        the number of lines read from the first line with it.
        """
        positions: dict[str, list[Any]] = json.loads(cursor or "{}")
        lines: list[str] = []
        size = 0
        for pod in self._pods(name):
            if not any("running" in state or "terminated" in state for state in _states(pod)):
                continue  # its container has not started
            pod_name = pod["metadata"]["name"]
            index = index_of(pod)
            last = positions.setdefault(pod_name, ["", 0])
            try:
                for stamp, line in self._output(pod_name, *last):
                    last[:] = [stamp, 1] if stamp > last[0] else [last[0], last[1] + 1]
                    lines.append(line if index == 0 else f"[pod {index}] {line}")
                    size += len(line)
                    if size >= _MAX_CHARACTERS:
                        return Logs(json.dumps(positions), "".join(lines), is_more=True)
            except Unreachable as error:
                # The node of a pod that is being deleted or taken away may not answer.
                if "deletionTimestamp" not in pod["metadata"] and not _disruption(pod):
                    raise
                lines.append(f"the last output of pod {index} is lost: {error}\n")
        return Logs(json.dumps(positions), "".join(lines))

    def stop(self, name: str) -> None:
        """Delete a Job and wait for the end of its pods."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        # A deleted Job has so long beyond the grace time of its pods.
        deadline = time.monotonic() + stop_seconds(self.settings) + 60.0
        is_known = self._ask(self._apis.batch.delete_namespaced_job, name, body=body) is not None
        while is_known and self._job(name) is not None:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"{self._namespace}: the pods of {name} have not ended; its Job is being deleted"
                )
            time.sleep(min(1.0, _LOOK_SECONDS))

    def _status(self, name: str) -> Status:
        return (
            Status("gone")
            if (job := self._job(name)) is None
            else status_of(job, self._pods(name), self._now, self.settings)
        )

    def _job(self, name: str) -> dict[str, Any] | None:
        return self._ask(self._apis.batch.read_namespaced_job, name)

    def _pods(self, name: str) -> Sequence[dict[str, Any]]:
        answer = self._ask(self._apis.core.list_namespaced_pod, label_selector=f"job-name={name}") or {}
        return sorted(
            answer.get("items", ()), key=lambda pod: (index_of(pod), pod["metadata"]["creationTimestamp"])
        )

    @cached_property
    def _service(self) -> dict[str, Any]:
        service = self._ask(self._apis.core.read_namespaced_service, SERVICE)
        if (
            service is None
            or service["spec"].get("clusterIP") != "None"
            or service["spec"].get("selector") != MANAGED_BY
        ):
            raise WorkloadError(
                f"{self._namespace}: launcher.kind: kubernetes needs the headless Service `{SERVICE}` of"
                " deploy/helm/manifests.yaml in this namespace",
                "settings",
            )
        return service

    def _output(self, pod: str, last: str, num_read: int) -> Iterator[tuple[str, str]]:
        """Yield time stamp and text of each complete line of a pod after those that were read: their newest
        stamp, and how many there were from the first line with it.

        Stamps of its two streams are not quite in order: a line counts by its place.
        """
        options: dict[str, Any] = {}
        if last:
            # The stamp is of the node's clock; what comes twice for that is skipped below.
            age = (self._now - datetime.fromisoformat(last)).total_seconds()
            if age >= 0:  # else the clocks say nothing of how long ago it was
                options["since_seconds"] = round(age + _CLOCK_SECONDS)
        # 400: its container has not started after all.
        response = self._send(
            self._apis.core.read_namespaced_pod_log,
            pod,
            container=CONTAINER,
            timestamps=True,
            absent=(HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST),
            **options,
        )
        if response is None:
            return
        before: list[tuple[str, str]] = []
        is_found = False
        try:
            for raw in response:
                stamp, _, text = raw.decode(errors="replace").partition(" ")
                if not text.endswith("\n"):  # it is still being written
                    break
                if num_read == 0:
                    yield stamp, text
                    continue
                before.append((stamp, text))
                is_found |= stamp == last
                num_read -= is_found
                if num_read == 0:
                    before.clear()
            # The node has dropped what was read.
            yield from (line for line in before if line[0] > last)
        except self._lost_answers as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any] | None:
        response = self._send(call, *arguments, **options)
        try:
            return None if response is None else json.loads(response.data)
        except self._lost_answers as error:  # cut off, or of a proxy in between
            raise self._unreachable(error) from None

    def _send(
        self,
        call: Callable[..., Any],
        *arguments: Any,
        absent: Sequence[int] = (HTTPStatus.NOT_FOUND,),
        **options: Any,
    ) -> Any:
        """Call a method of the client library and return the answer, unread; None for one of the status codes
        in `absent`.

        Raises:
            Unreachable: the API server does not answer, or not now.
            WorkloadError: it refuses.
        """
        from kubernetes.client import ApiException

        try:
            response = call(
                *arguments,
                namespace=self.settings.namespace,
                _preload_content=False,
                _request_timeout=_TIMEOUTS,
                **options,
            )
        except ApiException as error:
            status = error.status or 0
            if status in absent:
                return None
            line = f"{self._namespace}: {_message(error)}"
            if status in _TRANSIENT or status == 0:
                raise Unreachable(line) from None
            fixes = {
                401: "; set launcher.context, or log in again",
                403: "; give the account the rights of deploy/helm/manifests.yaml",
            }
            raise WorkloadError(f"{line}{fixes.get(status, '')}", "settings") from None
        except self._lost_answers as error:
            raise self._unreachable(error) from None
        date = response.headers.get("Date")
        self._now = datetime.now(UTC) if date is None else parsedate_to_datetime(date)
        return response

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"{self._namespace}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    @cached_property
    def _lost_answers(self) -> tuple[type[Exception], ...]:
        from urllib3.exceptions import HTTPError

        return HTTPError, json.JSONDecodeError

    @cached_property
    def _apis(self) -> Any:
        require("kubernetes", "launcher.kind: kubernetes")
        import kubernetes.client
        import kubernetes.config
        from urllib3 import Retry

        configuration: Any = kubernetes.client.Configuration()
        try:
            if self.settings.context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                kubernetes.config.load_incluster_config(configuration)
            else:
                # The library reads the environment as it is imported.
                kubernetes.config.load_kube_config(
                    os.environ.get("KUBECONFIG"), self.settings.context, configuration
                )
        except kubernetes.config.ConfigException as error:
            raise WorkloadError(
                f"no Kubernetes cluster: {' '.join(str(error).split())}; set KUBECONFIG and launcher.context",
                "settings",
            ) from None
        configuration.retries = Retry(
            5,
            backoff_factor=_BACKOFF_SECONDS,
            status_forcelist=_TRANSIENT,
            allowed_methods=("GET", "DELETE"),
            raise_on_status=False,
        )
        client = kubernetes.client.ApiClient(configuration)
        return SimpleNamespace(
            batch=kubernetes.client.BatchV1Api(client), core=kubernetes.client.CoreV1Api(client)
        )


def _message(error: Any) -> str:
    try:
        line = json.loads(error.body)["message"]
    except (KeyError, TypeError, ValueError):
        line = f"{error.status} {error.reason}"
    return " ".join(str(line).split())[:500]


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
        # An ended Job that nobody collects is kept for so long.
        "ttlSecondsAfterFinished": (7 * 24 * 3600),
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
    changes: dict[str, Any] = settings.pod.get("spec", {})
    return {
        **changes,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": stop_seconds(settings),
        # A workload has no business with the cluster.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            # User and group of the image.
            **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 10_001),
            **changes.get("securityContext", {}),
            # Else each file of a large volume is looked at before the pod starts.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, settings, nodes)],
        "volumes": volumes,
        **({"subdomain": SERVICE} if nodes > 1 else {}),
    }


def _container(spec: LaunchSpec, settings: KubernetesLauncherSettings, nodes: int) -> dict[str, Any]:
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
        "env": [{"name": name, "value": value} for name, value in variables(spec, settings).items()],
        "envFrom": [{"secretRef": {"name": name}} for name in settings.secrets],
        "resources": {"requests": requests, "limits": limits},
        "terminationMessagePath": MESSAGE,
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in zip(names, mounts, strict=True)],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _arguments(spec: LaunchSpec, settings: KubernetesLauncherSettings, nodes: int) -> list[str]:
    processes = spec.processes // nodes
    # Resource whose units torch has to see in the pod; of those of other names it may see another number.
    gpus = processes if settings.gpu_resource == "nvidia.com/gpu" else 0
    if nodes == 1:
        return command(settings.python, settings, gpus, spec.arguments, message=MESSAGE)
    return command(
        settings.python,
        settings,
        gpus,
        ["-m", spec.module, *spec.job],
        message=MESSAGE,
        hosts=[f"{spec.name}-{index}.{SERVICE}" for index in range(nodes)],
        # Of the first pod, on which the pods of a training meet.
        port=29_500,
        # The driver's limit for nodes that do not come is the first.
        # They wait for each other so much longer than `launcher.pending_minutes`.
        patience=math.ceil(settings.pending_minutes * 60 + 300.0),
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
    if (end := end_of(job)) is not None:
        if end["type"] == "Failed" and "deletionTimestamp" in job["metadata"]:
            return Status("running")  # somebody deletes it, which is why it failed; it is gone soon
        return Status("succeeded") if end["type"] == "Complete" else _failure(end, pods)
    if job["spec"].get("suspend"):  # a queue of the cluster has not admitted it, or has taken its nodes back
        return Status("pending")
    for pod in pods:
        if (problem := _cannot_go_on(pod, now)) is not None:
            return problem
    pending = [pod for pod in pods if pod["status"]["phase"] == "Pending"]
    nothing = f"no pod was made; `kubectl describe job -n {settings.namespace}` says why"
    why = next((_waits_for(pod) for pod in pending), nothing)
    began = datetime.fromisoformat(job["status"].get("startTime") or now.isoformat())
    is_late = (now - began).total_seconds() > settings.pending_minutes * 60
    if is_late and (pending or len(pods) < job["spec"]["completions"]):
        line = f"waited longer than launcher.pending_minutes ({settings.pending_minutes:g}): {why}"
        return Status("failed", line, "settings" if _REFUSED.search(why) else "infrastructure")
    return Status("running") if len(pending) < len(pods) else Status("pending", why if pending else "")


def end_of(job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the condition of a Job that has ended; None for another one."""
    return next(
        (
            condition
            for condition in job["status"].get("conditions", ())
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True"
        ),
        None,
    )


def _cannot_go_on(pod: dict[str, Any], now: datetime) -> Status | None:
    for state in _states(pod):
        waiting = state.get("waiting", {})
        reason = waiting.get("reason", "")
        # A runtime that cannot make a container says `not found` of things of its own.
        is_absent = reason != "CreateContainerError" and any(
            sign in waiting.get("message", "") for sign in ("not found", "manifest unknown")
        )
        # Those of them that no waiting changes.
        if reason in {"ErrImageNeverPull", "InvalidImageName"} or (reason in _CANNOT_START and is_absent):
            line = f"the pod cannot start: {_waits_for(pod)}; set {_CANNOT_START[reason]}"
            return Status("failed", line, "settings", is_own_line=True)
    until = pod["metadata"].get("deletionTimestamp")
    # A pod of a node that does not answer is being deleted for ever; after so long beyond its grace time the
    # node counts as lost.
    if until is not None and (now - datetime.fromisoformat(until)).total_seconds() > 60.0:
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
    endings = [_ending_of(end) for end in ends]
    disruptions = [why for pod in pods if (why := _disruption(pod))]
    if condition.get("reason") == "PodFailurePolicy" or disruptions:
        why = disruptions[0] if disruptions else condition.get("message", "")
        reason = f"was preempted: {' '.join(why.split())[:300]}"
        return next(
            (end for end in endings if end.is_own_line and end.failure == "preemption"),
            Status("failed", reason, "preemption"),
        )
    if condition.get("reason") == "DeadlineExceeded":
        return REACHED_LIMIT
    # A host that lost another one fails, too, but later: within a second, what the cluster has stopped is no
    # cause. A host whose memory ran out may end last.
    endings.sort(key=lambda end: {"out_of_memory": 0, "preemption": 2}.get(end.failure, 1))
    message = " ".join(condition.get("message", "").split())[:300]
    no_pods = Status("failed", f"lost its pods ({condition.get('reason')}: {message})", "infrastructure")
    return endings[0] if endings else no_pods


def _ending_of(end: dict[str, Any]) -> Status:
    if end.get("reason") == "OOMKilled":
        return Status("failed", "was killed: it took more than launcher.memory_gb; raise it", "out_of_memory")
    try:
        return Status(**json.loads(end.get("message") or ""))
    except (TypeError, ValueError):  # killed before it could say anything, or never started
        pass
    if end.get("reason") in ("StartError", "ContainerCannotRun"):
        return Status(
            "failed",
            f"the container cannot start: {' '.join(end.get('message', '').split())[:300]}; set"
            " launcher.python and launcher.image",
            "settings",
            is_own_line=True,
        )
    return Status("failed", *ending(end["exitCode"]))


def _disruption(pod: dict[str, Any]) -> str:
    status = pod["status"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return f"{status['reason']}: {status.get('message', '')}" if status.get("reason") in _PREEMPTED else ""


def index_of(pod: dict[str, Any]) -> int:
    """Return the place of a pod among those that share the work."""
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def _states(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (container.get("state", {}) for container in pod["status"].get("containerStatuses", ()))


def _waits_for(pod: dict[str, Any]) -> str:
    messages = [
        condition.get("message", "")
        for condition in pod["status"].get("conditions", ())
        if condition["type"] == "PodScheduled" and condition["status"] == "False"
    ]
    messages += [
        f"{waiting['reason']}: {waiting.get('message', '')}"
        for state in _states(pod)
        if (waiting := state.get("waiting", {})).get("reason") in _CANNOT_START
    ]
    return " ".join(" ".join(messages).split())[-300:] or "its image was not there"
