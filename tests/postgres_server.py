"""A real PostgreSQL server on this machine, from the programs that the system has."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.machine import free_port


@dataclass(frozen=True)
class PostgresServer:
    """A running server that asks for a password."""

    port: int
    password: str
    user: str = "dagster"
    database: str = "dagster"

    @property
    def env(self) -> dict[str, str]:
        """The variables that deploy/dagster/postgres-s3.yaml reads."""
        return {
            "DAGSTER_POSTGRES_HOST": "127.0.0.1",
            "DAGSTER_POSTGRES_PORT": str(self.port),
            "DAGSTER_POSTGRES_USER": self.user,
            "DAGSTER_POSTGRES_PASSWORD": self.password,
            "DAGSTER_POSTGRES_DB": self.database,
        }


def programs() -> Path | None:
    """Return the folder of `initdb`, `pg_ctl` and `createdb`, which Debian keeps off the PATH; None where
    there is none.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


@contextmanager
def serve() -> Iterator[PostgresServer]:
    """Run a server on an empty folder until the block ends.

    PostgreSQL refuses to run as root: there it runs as the user `postgres`, who therefore owns the folder. It
    is not below pytest's, which each other pytest on this machine closes to all but its own user again.
    """
    with tempfile.TemporaryDirectory(prefix="fullft-postgres-") as root, _serve(Path(root)) as server:
        yield server


@contextmanager
def _serve(root: Path) -> Iterator[PostgresServer]:
    folder = programs()
    assert folder is not None, "PostgreSQL is missing"
    server = PostgresServer(free_port(), secrets.token_hex(16))
    user = "postgres" if os.getuid() == 0 else None
    (root / "password").write_text(server.password)
    if user is not None:
        for path in (root, root / "password"):
            shutil.chown(path, user)

    def call(*command: str) -> None:
        done = subprocess.run(
            [str(folder / command[0]), *command[1:]],
            user=user,
            cwd=root,
            env={**os.environ, "PGPASSWORD": server.password, "LC_ALL": "C"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    call(
        "initdb",
        "-D",
        "data",
        "-U",
        server.user,
        "--pwfile=password",
        "--auth=scram-sha-256",
        "--no-sync",
        "--encoding=UTF8",
    )
    # Its own output: a server that held the pipe of pg_ctl would keep the call above waiting.
    call(
        "pg_ctl",
        "-D",
        "data",
        "-l",
        "server.log",
        "-w",
        "-o",
        f"-h 127.0.0.1 -p {server.port} -k '' -F",
        "start",
    )
    try:
        call("createdb", "-h", "127.0.0.1", "-p", str(server.port), "-U", server.user, server.database)
        yield server
    finally:
        call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
