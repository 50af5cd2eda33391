"""Runs whose process is gone. Dagster keeps a killed run as started, and its slots of a pool taken: it asks no process of its own machine.

A run that is launched here carries the name of this machine, and its log the pids of its processes. Of what runs elsewhere, or where that
is not known, nothing is said to be gone.
"""

import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime

import dagster as dg
import psutil
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._utils.concurrency import ConcurrencyKeyInfo, PendingStepInfo

from fullft_assets.errors import FailureClass
from fullft_assets.jobs.launch import RUN_ID
from fullft_assets.launchers.supervisor import is_alive, launched_processes

#: Tag with the name of the machine that a run was launched on.
HOST_TAG = "worker/host"
#: What a run that is gone is put down to.
_FAILURE: FailureClass = "infrastructure"
#: Where a code server listens for this machine alone.
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
#: A process that began this long after a line with its pid was logged is another one; clocks are set meanwhile, but by less.
_CLOCK_SECONDS = 60.0
#: A run that ended elsewhere may keep its slots for so long: its last process may be ending.
_END_SECONDS = 60.0


class LocalRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, which knows whether a run's processes still live: so the daemon marks a dead run as failed."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch a run that carries this machine's name."""
        self._instance.add_run_tags(context.dagster_run.run_id, host_tag())
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring asks."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return `NOT_FOUND` of a run that is gone; one of which nothing is known counts as running."""
        if is_gone(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"{_epitaph(self._instance, run.run_id)} [{_FAILURE}]")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def host_tag() -> dict[str, str]:
    """Return the tag of a run that is launched on this machine."""
    return {HOST_TAG: socket.gethostname()}


def is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether a run was launched on this machine and none of its processes lives, those that it launched included."""
    if not _is_here(run):
        return False
    workers = _workers(instance, run.run_id)
    return bool(workers) and not any(_lives(*worker) for worker in workers) and not launched_processes(run.run_id, RUN_ID)


def settle(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs that are gone as failed (or canceled, as was asked for), free the slots of their pools, and return a line for each."""
    held: dict[str, list[str]] = {}
    for info in _pools(instance):
        for step in info.pending_steps:
            slot = f"freed its slot for {_name(step)} of the pool `{info.concurrency_key}`"
            held.setdefault(step.run_id, []).extend([slot] if step.assigned_timestamp else [])
    open_runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]))
    lines = []
    for run_id in dict.fromkeys([*(run.run_id for run in open_runs), *held]):
        record = instance.get_run_record_by_id(run_id)
        if record is None:
            said = ["deleted"]
        elif record.dagster_run.is_finished:
            if not _is_over(instance, record):
                continue
            said = [f"{record.dagster_run.job_name}, over: {record.dagster_run.status.value.lower()}"]
        elif is_gone(instance, record.dagster_run):
            said = [f"{record.dagster_run.job_name}, gone: {_epitaph(instance, run_id)}", _mark(instance, record.dagster_run)]
        else:
            continue
        if run_id in held:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
            said += held[run_id]
        if len(said) > 1:
            lines.append(f"run {run_id[:8]} ({said[0]}); " + "; ".join(said[1:]))
    return lines


def waits(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """Return a line for each step of a run that waits for a slot which another run holds: for which run, since when, and where that is."""
    lines = []
    for info in _pools(instance):
        holders = [step for step in info.pending_steps if step.assigned_timestamp and step.run_id != run_id]
        if holders:
            by = "; and ".join(_about(instance, step) for step in holders)
        elif info.limit == 0:
            by = f"nothing: it has none; `dagster instance concurrency set {info.concurrency_key} 1` gives it one"
        else:
            continue
        waiting = [step for step in info.pending_steps if step.run_id == run_id and not step.assigned_timestamp]
        lines += [f"{_name(step)} waits for a slot of the pool `{info.concurrency_key}`, held by {by}" for step in waiting]
    return lines


def _about(instance: dg.DagsterInstance, slot: PendingStepInfo) -> str:
    run = instance.get_run_by_id(slot.run_id)
    assert slot.assigned_timestamp is not None, "it holds one"
    since = datetime.fromtimestamp(slot.assigned_timestamp.timestamp())
    held = f"run {slot.run_id[:8]} ({_name(slot)}) since {since:%Y-%m-%d %H:%M:%S}"
    if run is not None and _is_here(run):
        alive = [pid for pid, at in _workers(instance, run.run_id) if _lives(pid, at)]
        return f"{held}, " + (f"which works in process {alive[0]}" if alive else "whose last processes are writing their checkpoint")
    where = "nobody knows where" if run is None or HOST_TAG not in run.tags else f"on {run.tags[HOST_TAG]}"
    return f"{held}, {where}: if it is gone, free its slot in the UI (Deployment, Concurrency)"


def _is_over(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Return whether nothing works for a finished run any more; of one elsewhere that is supposed after a while, as Dagster does."""
    if _is_here(record.dagster_run):
        return is_gone(instance, record.dagster_run)
    return time.time() - (record.end_time or record.update_timestamp.timestamp()) > _END_SECONDS


def _mark(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    was_canceled = run.status == dg.DagsterRunStatus.CANCELING
    said = f"The run is gone: {_epitaph(instance, run.run_id)}. Found when another run looked."
    if was_canceled:  # which is no failure
        instance.report_run_canceled(run, said)
        return "marked as canceled"
    instance.report_run_failed(run, f"{said} [{_FAILURE}]")
    return "marked as failed"


def _epitaph(instance: dg.DagsterInstance, run_id: str) -> str:
    pids = ", ".join(str(pid) for pid in dict.fromkeys(pid for pid, _ in _workers(instance, run_id)))
    return f"its process {pids} ended without a word (killed, out of memory, or the machine went down)"


def _is_here(run: dg.DagsterRun) -> bool:
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return run.tags.get(HOST_TAG) == socket.gethostname() and server.get("host", "localhost") in _HERE


def _workers(instance: dg.DagsterInstance, run_id: str) -> list[tuple[int, float]]:
    """Return (pid, when it was logged) of each process that a run's log names."""
    found = []
    for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records:
        entry = record.event_log_entry
        pid = entry.dagster_event.engine_event_data.metadata.get("pid")
        if pid is not None:
            found.append((int(pid.value), entry.timestamp))
    return found


def _lives(pid: int, logged_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() <= logged_at + _CLOCK_SECONDS and is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _pools(instance: dg.DagsterInstance) -> Iterator[ConcurrencyKeyInfo]:
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        yield from (storage.get_concurrency_info(pool) for pool in sorted(storage.get_concurrency_keys()))


def _name(step: PendingStepInfo) -> str:
    return step.step_key.replace("__", "/")
