"""What the supervisor of a workload knows of memory that ran out: by the kernel's counts, wherever
they are.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullft_assets.launchers.machine import ended_status
from fullft_assets.launchers.supervisor import num_killed_for_memory


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("/system.slice/a.service", {"sys/system.slice/a.service/memory.events": 2}, 2),
        ("/kubepods/pod1/c1", {"sys/memory.events": 2}, 2),
        ("/user.slice/a.scope", {}, 9),
    ],
    ids=["service", "container", "nothing"],
)
def test_the_count_is_that_of_the_closest_control_group(tmp_path: Path, group, files, expected):
    for name, count in {"proc/vmstat": 9, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"under_oom 0\noom_kill {count}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"0::{group}\n")
    assert num_killed_for_memory(tmp_path / "proc", tmp_path / "sys") == expected


#: A wait for GPUs and a command, in each of which the kernel kills a process or does not.
SUPERVISED = """
import sys
from contextlib import contextmanager
from fullft_assets.launchers import supervisor

@contextmanager
def leased(*_, **__):
    open(sys.argv[1], "w").write(f"oom_kill {sys.argv[3]}\\n")
    yield {}

supervisor.leased = leased
command = ["sh", "-c", f"echo oom_kill {sys.argv[4]} > {sys.argv[1]}; exit 1"]
raise SystemExit(supervisor.supervise(supervisor.Options(folder=sys.argv[2]), command))
"""


@pytest.mark.parametrize(
    ("during_wait", "during_work", "failure"), [(2, 2, "unknown"), (1, 2, "out_of_memory")]
)
def test_what_is_killed_during_the_wait_for_gpus_is_not_the_command(
    tmp_path: Path, during_wait: int, during_work: int, failure: str
):
    count = tmp_path / "count"
    count.write_text("oom_kill 1\n")
    arguments = [count, tmp_path, during_wait, during_work]
    subprocess.run(
        [sys.executable, "-c", SUPERVISED, *map(str, arguments)],
        env={**os.environ, "FULLFT_OOM_COUNT": str(count)},
        check=False,
        timeout=60,
    )
    assert ended_status(tmp_path).failure == failure
