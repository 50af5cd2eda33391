"""A real SSH server on a free port of this machine, with a host key and a user key of its own."""

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests import machine

_MISSING = "no SSH on this machine: install Debian's `openssh-server` and `openssh-client`"


class SshServer:
    """`sshd` and what a client needs to reach it.

    Args:
        folder: for keys and configuration.
        environment: variables of each session; such as a cache of its own, as another machine has.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.folder = folder
        self.port = machine.free_port()
        self._process: subprocess.Popen | None = None
        if shutil.which("ssh-keygen") is None:
            machine.lacks(_MISSING)
        for name in ("host_key", "user_key", "other_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
            )
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {(folder / 'host_key.pub').read_text()}")
        variables = {
            "PYTHONPATH": os.pathsep.join([str(machine.ROOT), str(machine.ROOT / "tests")]),
            **environment,
        }
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in variables.items())}\n"
        )

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return the section `launcher` of a YAML that uses this server."""
        return {
            "kind": "ssh",
            "host": "127.0.0.1",
            "options": {
                "Port": self.port,
                "User": getpass.getuser(),
                "IdentityFile": str(self.folder / "user_key"),
                "UserKnownHostsFile": str(self.known_hosts),
            },
            "python": sys.executable,
            **changes,
        }

    def start(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        program = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
        if program is None or shutil.which("ssh") is None:
            machine.lacks(_MISSING)
        self._process = subprocess.Popen([program, "-D", "-e", "-f", str(self.folder / "sshd_config")])
        machine.wait_for_server(self._process, self.port)

    def cut(self) -> None:
        """End the server and every connection, but no process that a session left running."""
        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                if "sshd" in process.name():
                    process.kill()
        self._process.wait()
        self._process = None
