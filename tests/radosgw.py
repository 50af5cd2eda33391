"""A small Ceph cluster with its S3 gateway on this machine: unlike rclone's server it heeds the conditions of
writes, and lists in pages.
"""

import secrets
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.s3_server import S3Server

#: Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw.
PROGRAMS = ("monmaptool", "ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
_SETTINGS = """[global]
fsid = {fsid}
monmap = {root}/monmap
mon data = {root}/mon
mon data avail crit = 1
mon allow pool size one = true
osd data = {root}/osd
osd objectstore = memstore
osd class dir = {classes}
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
auth cluster required = none
auth service required = none
auth client required = none
run dir = {root}
admin socket = {root}/$name.asok
log file = {root}/$name.log
keyring = {root}/keyring
"""


def is_installed() -> bool:
    """Return whether all programs of the cluster are on the path."""
    return all(shutil.which(name) for name in PROGRAMS)


@contextmanager
def serve(root: Path) -> Iterator[S3Server]:
    """Serve S3 from a cluster of one monitor and one disk in memory until the block ends; it is ready after
    about ten seconds.

    Args:
        root: an empty folder for the cluster's files; buckets are not in it.
    """
    monitor_port, fsid, disk = _free_port(), uuid.uuid4(), str(uuid.uuid4())
    settings, (classes, *_) = root / "ceph.conf", sorted(Path("/usr/lib").glob("*/rados-classes"))
    settings.write_text(_SETTINGS.format(fsid=fsid, root=root, classes=classes), encoding="utf-8")
    access_key, secret_key = "test-key", secrets.token_hex(16)

    def run(program: str, *options: str) -> None:
        done = subprocess.run(
            [program, "-c", str(settings), *options], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{program} {' '.join(options)}: {done.stderr[-2_000:]}"

    with ExitStack() as running, (root / "output.log").open("wb") as log:

        def start(program: str, *options: str) -> None:
            process = running.enter_context(
                subprocess.Popen([program, "-c", str(settings), "-f", *options], stdout=log, stderr=log)
            )
            running.callback(process.kill)

        (root / "mon").mkdir()
        (root / "osd").mkdir()
        monmap = str(root / "monmap")
        run(
            "monmaptool",
            "--create",
            "--addv",
            "a",
            f"[v1:127.0.0.1:{monitor_port}]",
            "--fsid",
            str(fsid),
            monmap,
        )
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", disk)
        # Left alone, a disk places itself when it starts, sometimes before it knows the cluster's id, and
        # ends.
        run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=a", "root=default")
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        start("ceph-osd", "-i", "0")
        # The first client makes the gateway's pools; two at once would stand in each other's way.
        user = [
            "--uid",
            "test",
            "--display-name",
            "test",
            "--access-key",
            access_key,
            "--secret-key",
            secret_key,
        ]
        run("radosgw-admin", "user", "create", *user)
        # Asked for late: meanwhile another process may take a port that is free.
        port = _free_port()
        start("radosgw", "-n", "client.rgw", "--rgw-frontends", f"beast endpoint=127.0.0.1:{port}")
        _wait_for(port)
        yield S3Server(f"http://127.0.0.1:{port}", root, access_key, secret_key)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the S3 gateway did not start")
