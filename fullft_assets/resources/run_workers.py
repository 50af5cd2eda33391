"""Runs whose processes are gone: mark them as ended and free what they hold.

Dagster keeps a killed run as started, and its slots of a pool as taken, because it asks no process of its own
machine. A run that is launched here has the name of this machine as a tag, and its log contains the pids of
its processes. A run that was launched elsewhere, or where is unknown, is never taken for gone.
"""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import dagster as dg
import psutil

# Private: the health check of a run launcher has no public types. tests/test_private_dagster.py names the
# release.
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus

from fullft_assets.errors import FailureClass
from fullft_assets.extras import require_names
from fullft_assets.launch.contract import RUN_ID
from fullft_assets.launch.supervisor import is_alive, launched_processes

# Were one renamed, a run whose process was killed would never end.
require_names(dg.DefaultRunLauncher, ("supports_check_run_worker_health", "check_run_worker_health"))
#: Tag with the name of the machine that a run was launched on.
HOST_TAG = "worker/host"
#: Tag of Dagster with the address of the code server that launched a run.
CODE_SERVER_TAG = ".dagster/grpc_info"
#: The kind of failure of a run that is gone.
_FAILURE: FailureClass = "infrastructure"
#: A process that began this long after a line with its pid was logged is another one; the clock may have been
#: set meanwhile, but by less.
_CLOCK_SECONDS = 60.0


class LocalRunLauncher(dg.DefaultRunLauncher):
    """Dagster's default launcher, which also knows whether a run's processes are alive: so the daemon marks a
    dead run as failed.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch a run and tag it with this machine's name."""
        self._instance.add_run_tags(context.dagster_run.run_id, {HOST_TAG: socket.gethostname()})
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True, so that run monitoring asks."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return `NOT_FOUND` for a run that is gone; a run about which nothing is known counts as running."""
        return (
            CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"{_death(self._instance, run.run_id)} [{_FAILURE}]")
            if is_gone(self._instance, run)
            else CheckRunHealthResult(WorkerStatus.RUNNING)
        )


@dataclass(frozen=True)
class Slot:
    """A step that holds a slot of a pool, or waits for one."""

    pool: str
    run_id: str
    step: str
    #: When the slot was taken; None while the step waits.
    since: datetime | None


def host_tag(instance: dg.DagsterInstance) -> dict[str, str]:
    """Return the tag of a run that is launched on this machine; nothing where the instance's launcher starts
    runs elsewhere.
    """
    return (
        {HOST_TAG: socket.gethostname()} if isinstance(instance.run_launcher, dg.DefaultRunLauncher) else {}
    )


def is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether a run was launched on this machine and none of its processes is alive, those that it
    launched included.
    """
    if not _is_here(run):
        return False
    workers = _workers(instance, run.run_id)
    return (
        bool(workers)
        and not any(_is_running(*worker) for worker in workers)
        and not launched_processes(run.run_id, RUN_ID)
    )


def settle(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs that are gone as failed (or as canceled, if that was requested), free the slots of their
    pools, and return a line for each.
    """
    slots = [slot for _, _, of_pool in _pools(instance) for slot in of_pool]
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    open_runs = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=statuses))]
    lines = []
    for run_id in dict.fromkeys([*open_runs, *(slot.run_id for slot in slots)]):
        run = instance.get_run_by_id(run_id)
        actions = []
        if run is None:
            description = "deleted"
        elif not is_gone(instance, run):
            continue
        elif run.is_finished:
            description = f"{run.job_name}, over: {run.status.value.lower()}"
        else:
            description = f"{run.job_name}, gone: {_death(instance, run_id)}"
            actions.append(_mark(instance, run))
        slots_of_run = [slot for slot in slots if slot.run_id == run_id]
        if slots_of_run:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
            actions += [
                f"freed its slot for {slot.step} of the pool `{slot.pool}`"
                for slot in slots_of_run
                if slot.since is not None
            ]
        if actions:
            lines.append(f"run {run_id[:8]} ({description}); " + "; ".join(actions))
    return lines


def waits(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """Return a line for each step of a run that waits for a slot: which run holds it, and since when."""
    lines = []
    for pool, limit, slots in _pools(instance):
        holders = [
            _holder(instance, slot) for slot in slots if slot.since is not None and slot.run_id != run_id
        ]
        if limit == 0 and not holders:
            holders = [f"nothing: it has none; `dagster instance concurrency set {pool} 1` gives it one"]
        if holders:
            by = "; and ".join(holders)
            waiting = [slot for slot in slots if slot.run_id == run_id and slot.since is None]
            lines += [f"{slot.step} waits for a slot of the pool `{pool}`, held by {by}" for slot in waiting]
    return lines


def end_waiting(instance: dg.DagsterInstance, run_id: str) -> None:
    """End a run that does nothing but wait for a slot: the in-process executor hears no signal meanwhile."""
    run = instance.get_run_by_id(run_id)
    is_at_work = any(step.start_time and not step.end_time for step in instance.get_run_step_stats(run_id))
    if run is None or is_at_work or not _is_here(run) or not waits(instance, run_id):
        return
    # First, or the code server would call the end of the process a failure.
    instance.report_run_canceled(run, "It waited for a slot of a pool.")
    workers = [psutil.Process(pid) for pid, at in _workers(instance, run_id) if _is_running(pid, at)]
    for worker in workers:
        worker.kill()
    # `settle` frees its place in the queue for the slot once it is gone; nobody looks later.
    # What a killed process has to be gone.
    psutil.wait_procs(workers, timeout=10.0)


def _holder(instance: dg.DagsterInstance, slot: Slot) -> str:
    run = instance.get_run_by_id(slot.run_id)
    since = slot.since and slot.since.astimezone()
    step = f"({slot.step}) of {instance.root_directory}"
    holder = f"run {slot.run_id[:8]} {step} since {since:%Y-%m-%d %H:%M:%S}"
    return (
        f"{holder}: wait, or end it in the UI (Runs, Terminate)"
        if run is not None and _is_here(run)
        else f"{holder}, on another machine: if it is gone, free its slot in the UI (Deployment, Concurrency)"
    )


def _mark(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    message = f"The run is gone: {_death(instance, run.run_id)}. Found by another run."
    if run.status == dg.DagsterRunStatus.CANCELING:  # which is no failure
        instance.report_run_canceled(run, message)
        return "marked as canceled"
    instance.report_run_failed(run, f"{message} [{_FAILURE}]")
    return "marked as failed"


def _death(instance: dg.DagsterInstance, run_id: str) -> str:
    pids = ", ".join(dict.fromkeys(str(pid) for pid, _ in _workers(instance, run_id)))
    return f"its process {pids} ended without a message (killed, out of memory, or the machine went down)"


def _is_here(run: dg.DagsterRun) -> bool:
    return run.tags.get(HOST_TAG) == socket.gethostname() and json.loads(
        run.tags.get(CODE_SERVER_TAG, "{}")
    ).get("host", "localhost") in {
        # Addresses of a code server that listens for this machine alone. One that other machines reach too
        # has this machine's name.
        "localhost",
        "127.0.0.1",
        "::1",
        socket.gethostname(),
    }


def _workers(instance: dg.DagsterInstance, run_id: str) -> list[tuple[int, float]]:
    events = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    entries = [record.event_log_entry for record in events.records]
    return [(pid, entry.timestamp) for entry in entries if (pid := logged_pid(entry)) is not None]


def logged_pid(entry: dg.EventLogEntry) -> int | None:
    """Return the pid of the process that an engine event names, or None."""
    if entry.dagster_event is None:
        return None
    pid = entry.dagster_event.engine_event_data.metadata.get("pid")
    return None if pid is None else int(str(pid.value))


def _is_running(pid: int, logged_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() <= logged_at + _CLOCK_SECONDS and is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _pools(instance: dg.DagsterInstance) -> Iterator[tuple[str, int | None, list[Slot]]]:
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for pool in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(pool)
        slots = [
            Slot(pool, step.run_id, step.step_key.replace("__", "/"), step.assigned_timestamp)
            for step in info.pending_steps
        ]
        yield pool, info.limit, slots
