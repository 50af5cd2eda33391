"""The launcher `kubernetes`: each workload is an Indexed Job of a cluster, which goes on whatever happens to
the run that launched it.

The client library is imported only where it is used. Reads and deletions that the API server does not answer
are repeated here for some seconds, and by the driver for half an hour; a creation is repeated only after a
look whether it was done.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from typing import Any

from fullft_assets.errors import WorkloadError
from fullft_assets.extras import require
from fullft_assets.launchers.base import Launcher, LaunchSpec, Logs, Status, Unreachable
from fullft_assets.launchers.container import stop_seconds
from fullft_assets.launchers.kubernetes_job import (
    CONTAINER,
    MANAGED_BY,
    SERVICE,
    end_of,
    has_output,
    index_of,
    is_leaving,
    manifest,
    status_of,
)
from fullft_assets.settings import KubernetesLauncherSettings

#: Time between two looks at a Job whose end is waited for.
_LOOK_SECONDS = 5.0
#: Time to connect, and to wait for an answer.
_TIMEOUTS = (15.0, 60.0)
_NUM_TRIES, _BACKOFF_SECONDS = 5, 0.5
#: Answers that say that another try may be answered.
_TRANSIENT = (429, 500, 502, 503, 504)
#: A deleted Job has so long beyond the grace time of its pods.
_DELETE_SECONDS = 60.0
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
                self._batch.create_namespaced_job,
                body=manifest(spec, self.settings),
                field_validation="Strict",
                absent=(HTTPStatus.CONFLICT,),
            )
            # Created by somebody else meanwhile, or by a request whose answer was lost.
            if created is None and self._job(spec.name) is None:
                raise Unreachable(f"{self._namespace}: a Job {spec.name} is being deleted")

    def poll(self, name: str, wait_seconds: float = 0.0) -> Status:
        """Return how far a Job is; its end is noticed within seconds."""
        deadline = time.monotonic() + wait_seconds
        while not (status := self._status(name)).is_over and (seconds := deadline - time.monotonic()) > 0:
            time.sleep(min(seconds, _LOOK_SECONDS))
        return status

    def logs(self, name: str, cursor: str) -> Logs:
        """Return what the pods of a Job wrote after a cursor: by pod, the time stamp of the last line and how
        many lines with it were read.
        """
        read: dict[str, list[Any]] = json.loads(cursor or "{}")
        lines: list[str] = []
        size = 0
        for pod in self._pods(name):
            if not has_output(pod):
                continue
            pod_name, index = pod["metadata"]["name"], index_of(pod)
            last = read.setdefault(pod_name, ["", 0])
            try:
                for stamp, line in self._output(pod_name, *last):
                    last[:] = [stamp, last[1] + 1 if stamp == last[0] else 1]
                    lines.append(line if index == 0 else f"[pod {index}] {line}")
                    size += len(line)
                    if size >= _MAX_CHARACTERS:
                        return Logs(json.dumps(read), "".join(lines), is_more=True)
            except Unreachable as error:
                if not is_leaving(pod):
                    raise
                lines.append(f"the last output of pod {index} is lost: {error}\n")
        return Logs(json.dumps(read), "".join(lines))

    def stop(self, name: str) -> None:
        """Delete a Job and wait for the end of its pods."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        deadline = time.monotonic() + stop_seconds(self.settings) + _DELETE_SECONDS
        is_known = self._ask(self._batch.delete_namespaced_job, name, body=body) is not None
        while is_known and self._job(name) is not None:
            if time.monotonic() >= deadline:
                raise Unreachable(
                    f"{self._namespace}: the pods of {name} have not ended; its Job is being deleted"
                )
            time.sleep(min(1.0, _LOOK_SECONDS))

    def _status(self, name: str) -> Status:
        job = self._job(name)
        if job is None:
            return Status("gone")
        return status_of(job, self._pods(name), self._now, self.settings)

    def _job(self, name: str) -> dict[str, Any] | None:
        return self._ask(self._batch.read_namespaced_job, name)

    def _pods(self, name: str) -> Sequence[dict[str, Any]]:
        answer = self._ask(self._core.list_namespaced_pod, label_selector=f"job-name={name}") or {}
        return sorted(
            answer.get("items", ()), key=lambda pod: (index_of(pod), pod["metadata"]["creationTimestamp"])
        )

    @cached_property
    def _service(self) -> dict[str, Any]:
        service = self._ask(self._core.read_namespaced_service, SERVICE)
        if (
            service is None
            or service["spec"].get("clusterIP") != "None"
            or service["spec"].get("selector") != MANAGED_BY
        ):
            line = (
                f"{self._namespace}: launcher.kind: kubernetes needs the headless Service `{SERVICE}` of"
                " deploy/helm/manifests.yaml in this namespace"
            )
            raise WorkloadError(line, "settings")
        return service

    def _output(self, pod: str, last: str, num_read: int) -> Iterator[tuple[str, str]]:
        """Yield time stamp and text of each complete line of a pod after those that were read: their last
        stamp, and how many had it.

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
            self._core.read_namespaced_pod_log,
            pod,
            container=CONTAINER,
            timestamps=True,
            absent=(HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST),
            **options,
        )
        if response is None:
            return
        before: list[tuple[str, str]] = []
        try:
            for raw in response:
                stamp, _, text = raw.decode(errors="replace").partition(" ")
                if not text.endswith("\n"):  # it is still being written
                    break
                if num_read == 0:
                    yield stamp, text
                    continue
                before.append((stamp, text))
                num_read -= stamp == last
                if num_read == 0:
                    before.clear()
            # The node has dropped what was read.
            yield from (each for each in before if each[0] > last)
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
            line = f"{self._namespace}: {_said(error)}"
            if status in _TRANSIENT or status == 0:
                raise Unreachable(line) from None
            refused = {
                401: "; set launcher.context, or log in again",
                403: "; give the account the rights of deploy/helm/manifests.yaml",
            }
            raise WorkloadError(f"{line}{refused.get(status, '')}", "settings") from None
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
    def _apis(self) -> tuple[Any, Any]:
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
                files = os.environ.get("KUBECONFIG")
                kubernetes.config.load_kube_config(files, self.settings.context, configuration)
        except kubernetes.config.ConfigException as error:
            raise WorkloadError(
                f"no Kubernetes cluster: {' '.join(str(error).split())}; set KUBECONFIG and launcher.context",
                "settings",
            ) from None
        configuration.retries = Retry(
            _NUM_TRIES,
            backoff_factor=_BACKOFF_SECONDS,
            status_forcelist=_TRANSIENT,
            allowed_methods=("GET", "DELETE"),
            raise_on_status=False,
        )
        client = kubernetes.client.ApiClient(configuration)
        return kubernetes.client.BatchV1Api(client), kubernetes.client.CoreV1Api(client)

    @property
    def _batch(self) -> Any:
        return self._apis[0]

    @property
    def _core(self) -> Any:
        return self._apis[1]


def _said(error: Any) -> str:
    try:
        line = json.loads(error.body)["message"]
    except (KeyError, TypeError, ValueError):
        line = f"{error.status} {error.reason}"
    return " ".join(str(line).split())[:500]
