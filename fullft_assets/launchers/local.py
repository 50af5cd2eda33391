"""Runs workloads on this machine: supervised processes, torchrun where training has several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil

from fullft_assets.errors import WorkloadError
from fullft_assets.jobs import Job
from fullft_assets.jobs.launch import ERROR_FILE, LAUNCH_ID, RUN_ID, WorkloadFailure
from fullft_assets.launchers import Launcher
from fullft_assets.launchers.run_workers import logged_pid
from fullft_assets.launchers.supervisor import KILL_SECONDS, kill_until_gone, launched_processes
from fullft_assets.models.hardware import local_hardware
from fullft_assets.settings import LauncherSettings
from fullft_assets.store import Store

#: Workloads whose ranks share the work when `launcher.processes` is more than one; planning where they share a model.
DISTRIBUTED = frozenset({"training"})
#: What the supervisor needs beyond the grace time to notice, kill and collect.
_PATIENCE_SECONDS = 5.0


class LocalLauncher(Launcher):
    """Runs a workload under a supervisor; its output goes to the step's compute logs."""

    def __init__(self, settings: LauncherSettings, package: str = "fullft_assets.workloads"):
        self.settings = settings
        self.package = package

    def launch(self, context: dg.AssetExecutionContext, workload: str, job: Job, store: Store) -> None:
        """Run the workload to its end; see `Launcher.launch`."""
        command = self._command(
            workload, job.arguments(store), watched_processes(context), shares_model=job.settings.training.sharding != "none"
        )
        launch_id = uuid.uuid4().hex
        with (
            tempfile.TemporaryDirectory(prefix="fullft-") as folder,
            dg.open_pipes_session(
                context=context,
                context_injector=dg.PipesEnvContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),  # one a run: a second session would lose its messages
            ) as session,
        ):
            error_file = Path(folder, "error")
            environment = {
                **os.environ,
                **session.get_bootstrap_env_vars(),
                LAUNCH_ID: launch_id,
                RUN_ID: context.run.run_id,
                ERROR_FILE: str(error_file),
                # torchrun kills its ranks after 30 s by default, whatever our grace time is.
                "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(self.settings.grace_seconds + _PATIENCE_SECONDS)),
            }
            code = self._supervise(command, environment, launch_id)
            failure = WorkloadFailure.read(error_file)
        if code != 0 and failure is not None:
            raise WorkloadError(failure.line, failure.failure)
        if code != 0:
            # Killed from outside: by the kernel, the machine's owner or a node that went away.
            kind = "infrastructure" if code < 0 or code > 128 else "unknown"
            raise WorkloadError(f"workload {workload} {_ending(code)}; see the step's stderr", kind)

    def _command(self, workload: str, job_arguments: list[str], watched: list[int], *, shares_model: bool) -> list[str]:
        supervisor = [sys.executable, "-m", "fullft_assets.launchers.supervisor"]
        supervisor += ["--watch", ",".join(map(str, watched)), "--grace", str(self.settings.grace_seconds), "--"]
        torchrun = []
        if self.settings.processes > 1 and (workload in DISTRIBUTED or (workload == "planning" and shares_model and self._has_room())):
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.settings.processes)]
        return [*supervisor, sys.executable, *torchrun, "-m", f"{self.package}.{workload}", *job_arguments]

    def _has_room(self) -> bool:
        """Return whether all processes can compute on this machine: on its CPU, or on a GPU each. Else the training is one of several hosts."""
        gpus = local_hardware()["gpus"]
        return not gpus or len(gpus) >= self.settings.processes

    def _supervise(self, command: list[str], environment: Mapping[str, str], launch_id: str) -> int:
        # A session of its own: Ctrl-C in a terminal reaches Dagster alone, which cancels in an orderly way.
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait()
        except BaseException:  # a cancelled run raises DagsterExecutionInterruptedError or KeyboardInterrupt
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.settings.grace_seconds + _PATIENCE_SECONDS)
            raise
        finally:
            # Empty-handed as a rule; not when the supervisor was killed, or a second interrupt cut the wait short.
            kill_until_gone(lambda: launched_processes(launch_id))
            process.wait(KILL_SECONDS)


def watched_processes(context: dg.AssetExecutionContext) -> list[int]:
    """Return the processes that a workload must not outlive: this step's, and its run's worker.

    With the in-process executor both are one. Its parent, a code server or a shell, is not among them:
    a reload must not kill a run. The executor logs the worker's pid as the run starts; a logged pid
    counts only if it is an ancestor of this process, because another machine may have written it.
    """
    ancestors = {process.pid for process in psutil.Process().parents()}
    events = context.instance.get_records_for_run(context.run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    logged = {logged_pid(record.event_log_entry) for record in events.records}
    return [os.getpid(), *sorted(ancestors & logged)]


def _ending(code: int) -> str:
    number = -code if code < 0 else code - 128
    if number <= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended with exit code {code}"
    who = "lost its supervisor to" if code < 0 else "was killed by"
    return f"{who} {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
