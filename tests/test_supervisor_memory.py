"""What the supervisor of a workload knows of memory that ran out: by the kernel's counts, wherever
they are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets.launchers.supervisor import EXIT, num_killed_for_memory, ran_out_of_memory


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("/system.slice/a.service", {"sys/system.slice/a.service/memory.events": 2}, (2, True)),
        ("/", {"sys/memory.events": 2}, (2, True)),
        ("/kubepods/pod1/c1", {"sys/memory.events": 2}, (2, True)),
        ("/user.slice/session-3.scope", {"sys/user.slice/session-3.scope/memory.events": 2}, (2, False)),
        ("/user.slice/a.scope", {}, (9, False)),
    ],
    ids=[
        "service",
        "namespace",
        "container",
        "login",
        "nothing",
    ],
)
def test_the_count_is_that_of_the_closest_control_group(tmp_path: Path, group, files, expected):
    for name, count in {"proc/vmstat": 9, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"under_oom 0\noom_kill {count}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"0::{group}\n")
    assert num_killed_for_memory(tmp_path / "proc", tmp_path / "sys") == expected


def test_a_count_that_others_share_needs_a_process_that_was_killed():
    assert ran_out_of_memory((1, True), (2, True), is_killed=False)
    assert not ran_out_of_memory((1, False), (2, False), is_killed=False)
    assert ran_out_of_memory((1, False), (2, False), is_killed=True)
    assert not ran_out_of_memory((1, False), (1, False), is_killed=True)
    assert ran_out_of_memory(None, None, is_killed=True) and not ran_out_of_memory(
        None, None, is_killed=False
    )


@pytest.mark.parametrize("given", ["{}", "None"], ids=["then runs", "stopped while it waits"])
def test_what_is_killed_during_the_wait_for_gpus_is_not_the_command(tmp_path: Path, given: str):
    (tmp_path / "count").write_text("oom_kill 1\n")
    waits = f"""
from contextlib import contextmanager
from fullft_assets.launchers import supervisor
@contextmanager
def leased(*_, **__):
    open({str(tmp_path / "count")!r}, "w").write("oom_kill 2\\n")
    yield {given}
supervisor.leased = leased
raise SystemExit(supervisor.supervise(supervisor.Options(folder={str(tmp_path)!r}), ["false"]))
"""
    subprocess.run(
        [sys.executable, "-c", waits],
        env={**os.environ, "FULLFT_OOM_COUNT": str(tmp_path / "count")},
        check=False,
        timeout=60,
    )
    ended = json.loads((tmp_path / EXIT).read_text())
    assert ended["code"] == (1 if given == "{}" else 143) and not ended["is_out_of_memory"]
