"""An API server and nodes that really run the pods of Jobs, as processes of this machine; what our launcher
needs of Kubernetes.

Manifests are validated against the API's own schemas, strictly. An account may do what a Role of RBAC allows.
A container's image, DNS names, ports and the termination message are what each pod has of its own in a
cluster; here the arguments get other ones. All else runs as it is written.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml

from tests import serving as servers
from tests.machine import free_port

VERSION = "1.33"
NAMESPACE = "fullft"
#: Images that the registry has.
IMAGE = "registry.example.com/fullft@sha256:" + "0" * 64
#: Variable by which all processes of a pod are found, in whatever session they are.
_POD = "KUBERNETES_DOUBLE_POD"
_PATHS = [
    (re.compile(rf"/apis/batch/v1/namespaces/{NAMESPACE}/(jobs)(?:/([^/]+))?$"), "batch"),
    (re.compile(rf"/api/v1/namespaces/{NAMESPACE}/(services)(?:/([^/]+))?$"), ""),
    (re.compile(rf"/api/v1/namespaces/{NAMESPACE}/(pods)(?:/([^/]+))?(?:/(log))?$"), ""),
    (re.compile(rf"/apis/ray.io/v1/namespaces/{NAMESPACE}/(\w+)(?:/([^/]+))?(?:/(status))?$"), "ray.io"),
]


def role(name: str = "fullft-launcher") -> list[dict[str, Any]]:
    """Return the rules of the account for runs that launch Jobs, or make Ray clusters."""
    objects = yaml.safe_load_all((Path(__file__).parents[1] / "deploy/helm/manifests.yaml").read_text())
    (rules,) = [
        each["rules"] for each in objects if (each["kind"], each["metadata"]["name"]) == ("Role", name)
    ]
    return rules


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What goes wrong with the next request of this kind.

    Attributes:
        what: status of the answer, `reset` = the connection ends before anything is done, `lost` = after it
            was done.
        times: how often.
    """

    method: str
    path: str
    what: int | str
    times: int = 1


class Pod:
    """One container, and what the API says of it."""

    def __init__(self, job: dict[str, Any], index: int, folder: Path):
        name = job["metadata"]["name"]
        self.uid = str(uuid.uuid4())
        self.folder = folder / self.uid
        self.folder.mkdir(parents=True)
        self.index, self.spec = index, job["spec"]["template"]["spec"]
        template = job["spec"]["template"]["metadata"]
        self.metadata: dict[str, Any] = {
            "name": f"{name}-{index}-{self.uid[:5]}",
            "creationTimestamp": _stamp(),
            "labels": {**template.get("labels", {}), "job-name": name, "batch.kubernetes.io/job-name": name},
            "annotations": {
                **template.get("annotations", {}),
                "batch.kubernetes.io/job-completion-index": str(index),
            },
        }
        self.status: dict[str, Any] = {"phase": "Pending", "conditions": []}
        self.lines: list[tuple[str, bytes]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.kill_at = float("inf")
        self.is_node_lost = False
        self.is_out_of_memory = False
        self.is_suspended = False
        self._readers: list[threading.Thread] = []

    @property
    def is_over(self) -> bool:
        return self.status["phase"] in ("Succeeded", "Failed")

    @property
    def container(self) -> dict[str, Any]:
        return self.spec["containers"][0]

    def json(self) -> dict[str, Any]:
        return {
            "metadata": self.metadata,
            "spec": {**self.spec, "nodeName": f"node-{self.index}"},
            "status": self.status,
        }

    def wait_for(self, reason: str, message: str = "") -> None:
        self._be({"waiting": {"reason": reason, "message": message}})

    def start(self, environment: Mapping[str, str], port: int) -> None:
        container = self.container
        here = {
            container.get("terminationMessagePath", "/dev/termination-log"): str(self.folder / "message"),
            '"port": 29500': f'"port": {port}',
        }
        (self.folder / "message").touch()
        arguments = [
            re.sub(r"fullft-[\w-]+-\d+\.fullft-pods\b", "127.0.0.1", each) for each in container["args"]
        ]
        for written, meant in here.items():
            arguments = [each.replace(written, meant) for each in arguments]
        variables = {each["name"]: each["value"] for each in container["env"]}
        variables |= {"JOB_COMPLETION_INDEX": str(self.index), _POD: self.uid}
        try:
            self.process = subprocess.Popen(
                arguments,
                env={**environment, **variables},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._end(128, "StartError", f"exec: {error.filename}: {error.strerror}")
            return
        self.status["phase"] = "Running"
        self._be({"running": {"startedAt": _stamp()}})
        for stream in (self.process.stdout, self.process.stderr):
            self._readers.append(threading.Thread(target=self._read, args=(stream,), daemon=True))
            self._readers[-1].start()

    def terminate(self, *, reason: str = "") -> None:
        """Delete the pod: SIGTERM, and SIGKILL after the grace time. A reason is a disruption's."""
        if reason:
            self.status["conditions"].append(
                {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "by the test"}
            )
        grace = self.spec.get("terminationGracePeriodSeconds", 30)
        self.metadata.setdefault("deletionTimestamp", _stamp(grace))
        if self.process is None:
            self.status["phase"] = "Failed"
        elif self.kill_at == float("inf"):
            self.kill_at = time.monotonic() + grace
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def look(self) -> None:
        """Notice the end of the first process; with it all others of a container end."""
        if self.process is None or self.is_over or self.is_node_lost:
            return
        if time.monotonic() >= self.kill_at:
            self.kill()
        code = self.process.poll()
        if code is None:
            return
        self.kill()
        for reader in self._readers:
            reader.join()
        code = 128 - code if code < 0 else code
        reason = "OOMKilled" if self.is_out_of_memory else "Completed" if code == 0 else "Error"
        self._end(code, reason, (self.folder / "message").read_bytes()[:4096].decode(errors="replace"))

    def kill(self) -> None:
        for pid in _pids_of(self.uid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _end(self, code: int, reason: str, message: str) -> None:
        self.status["phase"] = "Succeeded" if code == 0 else "Failed"
        self._be(
            {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": _stamp()}}
        )

    def _be(self, state: dict[str, Any]) -> None:
        self.status["containerStatuses"] = [{"name": self.container["name"], "state": state}]

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            # One stamp for many lines, as a coarse clock gives, and now and then one that is late.
            moment = (time.time_ns() // 10_000_000 - (len(self.lines) % 8 == 7)) * 10_000_000
            stamp = datetime.fromtimestamp(moment // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self.lines.append((f"{stamp}.{moment % 1_000_000_000:09d}Z", line))


@dataclass
class JobOf:
    """A Job with its pods."""

    body: dict[str, Any]
    port: int
    pods: list[Pod] = field(default_factory=list)
    failing: dict[str, str] | None = None
    is_deleted: bool = False


class Cluster:
    """A cluster with one namespace.

    Args:
        folder: for the kubeconfig and the pods.
        environment: what the image sets.
        rules: of the Role that the account of the kubeconfig has.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], rules: Sequence[Mapping[str, Any]]):
        self.folder = folder
        self.environment = environment
        self.rules = rules
        self.jobs: dict[str, JobOf] = {}
        self.services: dict[str, dict[str, Any]] = {
            "fullft-pods": {
                "metadata": {"uid": "1a2b3c4d-0000"},
                "spec": {"clusterIP": "None", "selector": {"app.kubernetes.io/managed-by": "fullft"}},
            }
        }
        self.images = {IMAGE}
        self.secrets: dict[str, dict[str, str]] = {}
        #: Whether there is a node for a pod.
        self.has_room = True
        self.is_queueing = False
        #: How far the clock of the API server is ahead of ours and of the nodes', in seconds.
        self.clock_seconds = 0.0
        self.faults: list[Fault] = []
        self.used: set[tuple[str, str, str]] = set()
        #: Manifests of all Jobs that were created.
        self.created: list[dict[str, Any]] = []
        self._token = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._is_over = False

    @contextmanager
    def serving(self) -> Iterator[Cluster]:
        control = threading.Thread(target=self._control)
        with servers.serving(ThreadingHTTPServer(("127.0.0.1", 0), self._handler())) as server:
            self._write_kubeconfig(server.server_port)
            control.start()
            try:
                yield self
            finally:
                self._is_over = True
                control.join()
                for job in self.jobs.values():
                    for pod in job.pods:
                        pod.kill()

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def fail(self, method: str, path: str, what: int | str, times: int = 1) -> None:
        with self._lock:
            self.faults.append(Fault(method, path, what, times))

    def pods(self, job: str) -> list[Pod]:
        with self._lock:
            return list(self.jobs[job].pods) if job in self.jobs else []

    def evict(self, job: str) -> None:
        """Take the nodes of a Job's pods away, as for a pod of higher priority."""
        with self._lock:
            for pod in self.jobs[job].pods:
                pod.terminate(reason="PreemptionByScheduler")

    def run_out_of_memory(self, job: str) -> None:
        with self._lock:
            for pod in self.jobs[job].pods:
                pod.is_out_of_memory = True
                pod.kill()

    def lose_node(self, job: str) -> None:
        """End the processes without a word; the pods stay, being deleted."""
        with self._lock:
            for pod in self.jobs[job].pods:
                pod.is_node_lost = True
                pod.kill()
                pod.metadata["deletionTimestamp"] = _stamp(-120)

    def admit(self, *, is_admitted: bool = True) -> None:
        """Have the queue admit all Jobs, or take their nodes back."""
        with self._lock:
            for job in self.jobs.values():
                job.body["spec"]["suspend"] = not is_admitted

    def answer(self, method: str, url: str, body: dict[str, Any], token: str) -> tuple[int, Any]:
        """Return status and content of the answer to a request."""
        parsed = urlparse(url)
        query = {name: values[0] for name, values in parse_qs(parsed.query).items()}
        found = next(
            ((match.groups(), group) for pattern, group in _PATHS if (match := pattern.match(parsed.path))),
            None,
        )
        if token != f"Bearer {self._token}":
            raise Refused(401, "Unauthorized")
        if found is None:
            raise Refused(404, "the server could not find the requested resource")
        (resource, name, *sub), group = found
        resource = "/".join([resource, *filter(None, sub)])
        verb = {"POST": "create", "DELETE": "delete", "GET": "get" if name else "list"}.get(method, method)
        allowed = any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        )
        if not allowed:
            raise Refused(
                403,
                f'{resource} is forbidden: User "fullft" cannot {verb} resource "{resource}" in the namespace'
                f' "{NAMESPACE}"',
            )
        self.used.add((group, resource, verb))
        with self._lock:
            return self._answers()[resource, verb](name, query, body)

    def _answers(self) -> dict[tuple[str, str], Callable[..., tuple[int, Any]]]:
        return {
            ("jobs", "create"): lambda _, query, body: self._create(query, body),
            ("jobs", "get"): lambda name, *_: (200, self._job(name).body),
            ("jobs", "delete"): lambda name, _, body: self._delete(name, body),
            ("pods", "list"): lambda _, query, __: (
                200,
                {"items": _chosen([pod.json() for job in self.jobs.values() for pod in job.pods], query)},
            ),
            ("pods/log", "get"): lambda name, query, _: (200, self._log(name, query)),
            ("services", "get"): lambda name, *_: (
                (200, self.services[name]) if name in self.services else _absent("services", name)
            ),
        }

    def _create(self, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if name in self.jobs:
            raise Refused(409, f'jobs.batch "{name}" already exists')
        if query.get("fieldValidation") == "Strict":
            _validate(body)
        job = json.loads(json.dumps(body))
        job["status"] = {}
        job["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": _stamp()}
        job["spec"]["suspend"] = self.is_queueing
        self.created.append(body)
        self.jobs[name] = JobOf(job, free_port())
        return 201, job

    def _job(self, name: str) -> JobOf:
        return self.jobs[name] if name in self.jobs else _absent("jobs.batch", name)

    def _delete(self, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        assert body["propagationPolicy"] == "Foreground", "the Job is to be there until its pods have ended"
        job = self._job(name)
        job.is_deleted = True
        job.body["metadata"]["deletionTimestamp"] = _stamp()
        return 200, job.body

    def _log(self, name: str, query: dict[str, str]) -> bytes:
        found = [pod for job in self.jobs.values() for pod in job.pods if pod.metadata["name"] == name]
        if not found:
            _absent("pods", name)
        (pod,) = found
        assert query["container"] == pod.container["name"] and query["timestamps"].lower() == "true"
        if pod.is_node_lost:
            raise Refused(
                500, f"Get https://node-{pod.index}:10250/containerLogs: dial tcp: no route to host"
            )
        if pod.process is None:
            raise Refused(
                400,
                f'container "{query["container"]}" in pod "{name}" is waiting to start: ContainerCreating',
            )
        since = _stamp(-int(query["sinceSeconds"])) if "sinceSeconds" in query else ""
        return b"".join(stamp.encode() + b" " + line for stamp, line in pod.lines if stamp >= since)

    def _control(self) -> None:
        while not self._is_over:
            with self._lock:
                for name, job in list(self.jobs.items()):
                    self._reconcile(name, job)
            time.sleep(0.02)

    def _reconcile(self, name: str, job: JobOf) -> None:
        """Bring a Job a step further, as its controller, the scheduler and a node's kubelet do."""
        spec, status = job.body["spec"], job.body["status"]
        for pod in job.pods:
            pod.look()
        active = [pod for pod in job.pods if not pod.is_over]
        if job.is_deleted or job.failing is not None or spec["suspend"]:
            for pod in active:
                pod.terminate()
        if job.is_deleted:
            if not active or all(pod.is_node_lost for pod in active):
                del self.jobs[name]
            return
        if "conditions" in status:
            return
        # Those of a suspended Job do not count.
        job.pods = [pod for pod in job.pods if not (pod.is_over and pod.is_suspended)]
        if spec["suspend"]:
            for pod in active:
                pod.is_suspended = True
            status.pop("startTime", None)
            return
        status.setdefault("startTime", _stamp(self.clock_seconds))
        failed = [pod for pod in job.pods if pod.status["phase"] == "Failed"]
        limit = spec.get("activeDeadlineSeconds")
        if limit is not None and _age(status["startTime"]) + self.clock_seconds > limit:
            job.failing = job.failing or {
                "reason": "DeadlineExceeded",
                "message": "Job was active longer than specified deadline",
            }
        if failed and job.failing is None:
            job.failing = _failing(failed[0])
        if job.failing is not None:
            if not active:
                status["conditions"] = [{"type": "Failed", "status": "True", **job.failing}]
                # A pod that was deleted is gone as soon as it is counted.
                job.pods = [pod for pod in job.pods if "deletionTimestamp" not in pod.metadata]
            return
        if len([pod for pod in job.pods if pod.status["phase"] == "Succeeded"]) == spec.get("completions", 1):
            status["conditions"] = [{"type": "Complete", "status": "True"}]
            return
        missing = set(range(spec.get("completions", 1))) - {pod.index for pod in job.pods}
        job.pods += [Pod(job.body, index, self.folder / "pods") for index in sorted(missing)]
        for pod in job.pods:
            if pod.status["phase"] == "Pending":
                self._schedule(pod, job)

    def _schedule(self, pod: Pod, job: JobOf) -> None:
        if not self.has_room:
            pod.status["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                }
            ]
        elif pod.container["image"] not in self.images:
            pod.wait_for("ErrImagePull", f'failed to resolve reference "{pod.container["image"]}": not found')
        else:
            names = [each["secretRef"]["name"] for each in pod.container.get("envFrom", [])]
            absent = [name for name in names if name not in self.secrets]
            if absent:
                pod.wait_for("CreateContainerConfigError", f'secret "{absent[0]}" not found')
                return
            of_secrets = {key: value for name in names for key, value in self.secrets[name].items()}
            pod.start({**self.environment, **of_secrets}, job.port)

    def _write_kubeconfig(self, port: int) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "fullft", "user": {"token": self._token}}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "fullft"}}],
            "current-context": "double",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _fault(self, method: str, path: str) -> int | str | None:
        with self._lock:
            for fault in self.faults:
                if fault.method == method and fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault.what
        return None

    def _handler(self) -> type[servers.Handler]:
        cluster = self

        class Handler(servers.Handler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
                fault = cluster._fault(self.command, self.path)
                if fault == "reset":
                    return self._reset()
                try:
                    if isinstance(fault, int):
                        raise Refused(fault, "by the test")
                    status, content = cluster.answer(
                        self.command, self.path, body, self.headers.get("Authorization", "")
                    )
                except Refused as error:
                    status, content = (
                        error.status,
                        {"kind": "Status", "message": str(error), "code": error.status},
                    )
                if fault == "lost":
                    return self._reset()
                return self.reply(
                    status, content if isinstance(content, bytes) else json.dumps(content).encode()
                )

            do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + cluster.clock_seconds, usegmt=True)

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)
                self.close_connection = True

        return Handler


def _validate(body: dict[str, Any]) -> None:
    try:
        kubernetes_validate.validate(body, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise Refused(
            400, f"strict decoding error: {'.'.join(map(str, error.path))}: {error.message[:200]}"
        ) from None


def _failing(pod: Pod) -> dict[str, str]:
    if any(each["type"] == "DisruptionTarget" for each in pod.status["conditions"]):
        message = (
            f"Pod {NAMESPACE}/{pod.metadata['name']} has condition DisruptionTarget matching FailJob rule at"
            " index 0"
        )
        return {"reason": "PodFailurePolicy", "message": message}
    return {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}


def _chosen(objects: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    wanted = dict(pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
    return [each for each in objects if wanted.items() <= each["metadata"]["labels"].items()]


def _absent(kind: str, name: str) -> Any:
    raise Refused(404, f'{kind} "{name}" not found')


def _stamp(seconds: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _age(stamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()


def _pids_of(pod: str) -> list[int]:
    """Return the processes that have a pod's variable in their environment."""
    marker, found = f"{_POD}={pod}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if marker in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
