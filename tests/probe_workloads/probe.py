"""A workload that does what its job's stage names; every process leaves its pid in the project root."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fullft_assets.errors import DataError, Interrupted
from fullft_assets.job import Job
from fullft_assets.launch.entry import run_workload
from fullft_assets.progress import Progress
from fullft_assets.store import Store


def leave_pid(folder: Path, name: str, pid: int) -> None:
    """Write a pid where the test looks for it, in one atomic step."""
    (folder / f".{name}").write_text(str(pid))
    (folder / f".{name}").rename(folder / f"{name}.pid")


def writes(job: Job, store: Store, progress: Progress) -> None:
    progress.say("reading the rows")
    for done in range(1, 1001):
        progress.step(done, 1000, loss=0.25)
    with store.create(job.case, job.stage, job.key, version="1", seed=0) as draft:
        (draft.path / "answer.txt").write_text("42")
        draft.commit(settings={}, inputs={}, metadata={"rank": os.environ.get("RANK")})


def prints(job: Job, store: Store, progress: Progress) -> None:
    for number in range(200):
        print(f"line {number} of stdout", flush=True)
        print(f"line {number} of stderr", file=sys.stderr, flush=True)


def looks(job: Job, store: Store, progress: Progress) -> None:
    """Write down where the job's relative paths start, and a variable of the environment."""
    with store.create(job.case, job.stage, job.key, version="1", seed=0) as draft:
        draft.commit(
            settings={},
            inputs={},
            metadata={"root": job.project_root, "variable": os.environ.get("PROBE_VARIABLE")},
        )


def reads(job: Job, store: Store, progress: Progress) -> None:
    """Write what the input says, and leave a file of unfinished work beside it."""
    progress.say("reading the input")
    folder = store.folder(job.load_inputs(store)["given"])
    (store.work_folder(job.case, job.stage, job.key) / "steps").write_text("7")
    with store.create(job.case, job.stage, job.key, version="1", seed=0) as draft:
        (draft.path / "answer.txt").write_text((folder / "question.txt").read_text() + " 42")
        draft.commit(settings={}, inputs={}, metadata={"store": store.url})


def refuses(job: Job, store: Store, progress: Progress) -> None:
    """End for a reason that the user can fix."""
    raise DataError("documents/a.csv:3: no field `label`;\nname it in examples.label")


def crashes(job: Job, store: Store, progress: Progress) -> None:
    raise RuntimeError("the roof is on fire\nsecond line")


def forgets(job: Job, store: Store, progress: Progress) -> None:
    """End well, without the artifact."""


def is_killed(job: Job, store: Store, progress: Progress) -> None:
    """Die as the kernel's out-of-memory killer would have it."""
    os.kill(os.getpid(), signal.SIGKILL)


def runs_out_of_memory(job: Job, store: Store, progress: Progress) -> None:
    """Die as by the kernel's out-of-memory killer, which counts that."""
    count = Path(os.environ["FULLFT_OOM_COUNT"])
    count.write_text(f"low 0\noom_kill {count.read_text().count('oom_kill') + 1}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def works(job: Job, store: Store, progress: Progress) -> None:
    """Work until asked to stop, then take a second for a checkpoint; a process in its own session works
    along.
    """
    folder = Path(job.project_root)
    rank = os.environ.get("RANK", "0")
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
    leave_pid(folder, f"helper{rank}", helper.pid)
    leave_pid(folder, f"workload{rank}", os.getpid())
    progress.say("working")
    deadline = time.monotonic() + 120
    while not progress.stop_requested and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    (folder / f"checkpoint{rank}").write_text("complete")
    raise Interrupted("stopped at step 7 of 9; run the same command to resume there")


def ignores(job: Job, store: Store, progress: Progress) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    works(job, store, progress)


def waits(job: Job, store: Store, progress: Progress) -> None:
    """Leave a line for each start, and write the artifact when a file asks for it."""
    folder = Path(job.project_root)
    leave_pid(folder, "workload0", os.getpid())
    with (folder / "starts").open("a") as file:
        file.write("started\n")
    progress.say("waiting")
    deadline = time.monotonic() + 120
    while not (folder / "go").exists() and time.monotonic() < deadline:
        progress.raise_if_stopped()
        time.sleep(0.05)
    writes(job, store, progress)


def is_preempted(job: Job, store: Store, progress: Progress) -> None:
    """End as on a spot machine, the first time; then write the artifact."""
    if store.read_pointer("tries") is None:
        store.write_pointer("tries", {"num_tries": 1})
        raise Interrupted("stopped at step 7 of 9; run the same command to resume there")
    writes(job, store, progress)


def work(job: Job, store: Store, progress: Progress) -> None:
    globals()[job.stage](job, store, progress)


if __name__ == "__main__":
    run_workload(work)
