"""What the doubles of Amazon's services share: requests are checked as AWS checks them, faults, containers as
processes, CloudWatch Logs.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

from tests.machine import ARITHMETIC, ROOT
from tests.serving import Handler, serving

ROLE = "arn:aws:iam::111122223333:role/fullft-container"
IMAGE = f"111122223333.dkr.ecr.us-east-1.amazonaws.com/fullft@sha256:{'0' * 64}"
#: A page of GetLogEvents.
_PAGE = 50
#: What keeps this machine's libraries from instructions that its CPU has, as if it had none of them: a
#: container here is on the same CPU.
_OF_THE_CPU = {
    name: os.environ[name] for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA") if name in os.environ
}


class Refused(Exception):
    def __init__(self, code: str, message: str, status: int = 400, **more: Any):
        super().__init__(message)
        self.code, self.status, self.more = code, status, more


class AwsDouble(ThreadingHTTPServer):
    """A service and CloudWatch Logs; each operation is a method `_Operation` of the request's members.

    Args:
        folder: for the containers.
        environment: variables of each container beside those of its job: what the image and the role give,
            which is no AWS_DEFAULT_REGION.
    """

    daemon_threads = True
    #: Name of the service in its header, in the variable of its endpoint, and of its model.
    target: ClassVar[str]
    endpoint: ClassVar[str]
    model: ClassVar[str]

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.environment = {
            name: value for name, value in environment.items() if name != "AWS_DEFAULT_REGION"
        }
        #: Streams of the log group: when a line arrived, and the line.
        self.streams: dict[str, list[tuple[float, str]]] = {}
        self.processes: list[subprocess.Popen[str]] = []
        self.calls: Counter[str] = Counter()
        #: Faults, by operation and how often: answers with ThrottlingException, with 500, and requests that
        #: are done but not answered.
        self.throttled: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        #: Seconds after which a line of output can be read.
        self.late_seconds = 0.0
        models = botocore.session.get_session()
        self.models = {
            self.target: models.get_service_model(self.model),
            "Logs_20140328": models.get_service_model("logs"),
        }

    @property
    def env(self) -> dict[str, str]:
        """Variables that make clients of both services talk to this server."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return {f"AWS_ENDPOINT_URL_{self.endpoint}": url, "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": url}

    def answer(self, target: str, request: dict[str, Any]) -> dict[str, Any]:
        service, _, operation = target.partition(".")
        self.calls[operation] += 1
        for faults, code, status in (
            (self.throttled, "ThrottlingException", 400),
            (self.broken, "InternalFailure", 500),
        ):
            if faults[operation] > 0:
                faults[operation] -= 1
                raise Refused(code, "Rate exceeded", status)
        shape = self.models[service].operation_model(operation).input_shape
        problems = [*ParamValidator().validate(request, shape)._errors, *_problems(request, shape, operation)]
        if problems:
            raise Refused("ValidationException", f"{len(problems)} validation errors detected: {problems}")
        return getattr(self, f"_{operation}")(request)

    def _DescribeLogStreams(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self.streams:
            raise Refused("ResourceNotFoundException", "The specified log group does not exist.")
        found = [
            name
            for name in self.streams
            if name.startswith(request["logStreamNamePrefix"]) and self._arrived(name)
        ]
        return {"logStreams": [{"logStreamName": name} for name in sorted(found)]}

    def _GetLogEvents(self, request: dict[str, Any]) -> dict[str, Any]:
        lines = self._arrived(request["logStreamName"])
        first = (
            int(request.get("nextToken", "f/0").removeprefix("f/"))
            if request["startFromHead"]
            else max(0, len(lines) - _PAGE)
        )
        events = [{"timestamp": int(at * 1000), "message": line} for at, line in lines[first : first + _PAGE]]
        return {"events": events, "nextForwardToken": f"f/{first + len(events)}", "nextBackwardToken": "b/0"}

    def start_container(
        self, command: Sequence[str], variables: Mapping[str, str], stream: str
    ) -> subprocess.Popen[str]:
        """Start a process with these variables beside the image's, and collect its output as a log stream."""
        process = subprocess.Popen(
            command,
            env={
                **_OF_THE_CPU,
                **self.environment,
                **variables,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.processes.append(process)
        threading.Thread(target=self._collect, args=(stream, process), daemon=True).start()
        return process

    def end_containers(self, processes: Sequence[subprocess.Popen[str]], seconds: float) -> None:
        """Send SIGTERM, and SIGKILL to what is left after so long."""
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

        def kill() -> None:
            with suppress(subprocess.TimeoutExpired):
                for process in processes:
                    process.wait(seconds)
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()

    def kill_containers(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _arrived(self, stream: str) -> list[tuple[float, str]]:
        return [
            event for event in self.streams.get(stream, []) if event[0] <= time.time() - self.late_seconds
        ]

    def _collect(self, stream: str, process: subprocess.Popen[str]) -> None:
        lines = self.streams.setdefault(stream, [])
        for line in process.stdout:
            lines.append((time.time(), line.rstrip("\n")))


Double = TypeVar("Double", bound=AwsDouble)


@contextmanager
def serve(double: type[Double], folder: Path, environment: Mapping[str, str]) -> Iterator[Double]:
    """Serve a service until the block ends; no container outlives it."""
    folder.mkdir()
    server = double(
        folder,
        {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            **ARITHMETIC,
            **environment,
        },
    )
    with serving(server):
        try:
            yield server
        finally:
            server.kill_containers()


class _Handler(Handler):
    server: AwsDouble
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        target = self.headers["X-Amz-Target"]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 "):
                raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
            status, answer = 200, self.server.answer(target, body)
        except Refused as refused:
            status, answer = refused.status, {"__type": refused.code, "message": str(refused), **refused.more}
        operation = target.partition(".")[2]
        if status == 200 and self.server.lost[operation] > 0:
            self.server.lost[operation] -= 1
            self.close_connection = True
            return
        self.reply(status, json.dumps(answer).encode(), {"Content-Type": "application/x-amz-json-1.1"})


def _problems(value: Any, shape: Shape, place: str) -> Iterator[str]:
    """Yield what botocore does not check before it sends: lengths, patterns and choices."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from _problems(each, shape.members[name], f"{place}.{name}")
    elif shape.type_name == "list":
        for each in value:
            yield from _problems(each, shape.member, place)
    elif shape.type_name == "map":
        for key, each in value.items():
            yield from _problems(key, shape.key, place)
            yield from _problems(each, shape.value, f"{place}.{key}")
    size = value if isinstance(value, int) else len(value) if isinstance(value, str | list | dict) else 0
    if size < limits.get("min", size) or size > limits.get("max", size):
        yield f"{place}: {size} is not within {limits.get('min')} and {limits.get('max')}"
    if isinstance(value, str):
        if (choices := limits.get("enum")) and value not in choices:
            yield f"{place}: {value} is not one of its choices"
        pattern = limits.get("pattern", "").replace(r"\p{L}\p{Z}\p{N}", r"\w ")
        if pattern and re.fullmatch(pattern, value) is None:
            yield f"{place}: {value} does not match {pattern}"
