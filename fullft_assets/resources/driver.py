"""The one driver of all launchers: record, attach or submit, follow, cancel, classify, try again, collect."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import dagster as dg
import psutil

from fullft_assets.errors import TRANSIENT, WorkloadError
from fullft_assets.job import Job
from fullft_assets.launch import records
from fullft_assets.launch.base import Launcher, LaunchSpec, Logs, Status, Unreachable
from fullft_assets.resources.run_workers import is_gone, logged_pid
from fullft_assets.store import Manifest, Store

#: Time before the first retry; each further one waits twice as long.
RETRY_SECONDS = 30.0
#: A backend that does not answer is asked again for so long.
PATIENCE_SECONDS = 1800.0
#: A cancelled run asks for the end of its job for so long: Kubernetes kills it soon, and people wait.
_CANCEL_SECONDS = 120.0
_PAUSE_SECONDS = 5.0

#: What a cancelled step raises: by Dagster, by Ctrl-C, or by a handler of SIGTERM; also where its machine
#: goes away.
_CANCELLED = (dg.DagsterExecutionInterruptedError, KeyboardInterrupt, SystemExit)

T = TypeVar("T")


@dataclass(frozen=True)
class LaunchDriver:
    """Runs workloads to their end; the resource `CASE_launcher`.

    Progress arrives in Dagster's log through Pipes. The result is never taken from there: it is the manifest
    that the workload writes last.

    Attributes:
        launcher_of: returns the launcher of a workload.
        package: where the workloads' modules are.
    """

    launcher_of: Callable[[str], Launcher]
    package: str = "fullft_assets.launch.workloads"

    def run(self, context: dg.AssetExecutionContext, workload: str, job: Job, store: Store) -> Manifest:
        """Launch a workload, or attach to it where it runs already, and return the manifest of the artifact
        that its job asks for.

        A cancelled run stops a job that it launched: it has the grace time for a checkpoint, then it is
        killed.

        Raises:
            WorkloadError: the workload failed, and was not to be tried again; or it wrote no manifest.
        """
        launcher = self.launcher_of(workload)
        arguments = job.arguments(store)
        num_retries = 0
        while True:
            status, is_own = self._attempt(context, launcher, workload, job, store, arguments)
            if status.state == "succeeded":
                manifest = store.find(job.case, job.stage, job.key)
                if manifest is None:
                    raise WorkloadError(
                        f"workload {workload} ended with exit code 0 but without its manifest: no artifact"
                        f" {job.case}/{job.stage}/{job.key} in {store.url}; see the step's stdout"
                    )
                return manifest
            # An attempt of an earlier run, which ended as that run did, says nothing about this one.
            if status.failure not in TRANSIENT or num_retries + is_own > launcher.settings.max_retries:
                raise WorkloadError(status.reason, status.failure)
            pause = RETRY_SECONDS * 2**num_retries if is_own else 0.0
            num_retries += is_own
            step = (
                f"retry {num_retries} of {launcher.settings.max_retries} in {pause:g} s"
                if is_own
                else "that was the attempt of an earlier run; starting it again"
            )
            context.log.warning(f"{status.reason} [{status.failure}]; {step}, from its checkpoint")
            time.sleep(pause)

    def spec(
        self,
        launcher: Launcher,
        workload: str,
        job: Job,
        *,
        name: str = "",
        arguments: Sequence[str] = (),
        run_id: str = "",
    ) -> LaunchSpec:
        """Return the specification of a job for a launcher, without the environment and the processes that
        the job must not outlive.
        """
        processes = launcher.settings.processes
        is_shared = workload == "training" or (
            workload in ("planning", "evaluation")
            and job.settings.training.sharding != "none"
            and launcher.has_room(processes)
        )
        return LaunchSpec(
            name,
            f"{self.package}.{workload}",
            tuple(arguments),
            processes if is_shared else 1,
            run_id=run_id,
        )

    def _attempt(
        self,
        context: dg.AssetExecutionContext,
        launcher: Launcher,
        workload: str,
        job: Job,
        store: Store,
        arguments: list[str],
    ) -> tuple[Status, bool]:
        """Submit a job, or attach to one, follow it to its end, and return that and whether this run
        submitted it.
        """
        is_active = partial(_is_active, context.instance)
        request = self._request(context, launcher, workload, job, arguments)
        self._end_elsewhere(context, request, store, is_active)
        launch, is_new = records.claim(store, request, is_active)
        name = launch.name_in(store)
        is_mine = launch.run_id == context.run.run_id
        if not is_new:
            unknown = (
                ""
                if is_mine or is_active(launch.run_id) is not None
                else ", unknown here: cancelling this run leaves the job running"
            )
            context.log.info(
                f"attaching to {name} at {launch.place}, which run {launch.run_id[:8]} follows{unknown}"
            )

        def adopt() -> None:
            """Follow the job in the place of its run, once that is gone: else it counts as one that nobody
            follows.
            """
            nonlocal is_mine
            if not is_mine and is_active(launch.run_id) is False:
                is_mine = records.adopt(store, launch, context.run.run_id, is_active)

        messages = _LogMessages()
        with dg.open_pipes_session(
            context=context, context_injector=dg.PipesEnvContextInjector(), message_reader=messages
        ) as session:
            spec = replace(
                self.spec(launcher, workload, job, name=name, arguments=arguments, run_id=context.run.run_id),
                environment=session.get_bootstrap_env_vars(),
                watched=tuple(watched_processes(context)),
            )
            is_submitted = not is_new
            try:
                is_followed = partial(is_active, launch.run_id) if not is_mine else lambda: False
                if is_new or self._is_lost(context, launcher, launch, store, is_followed):
                    # Whoever followed the attempt before may not have been able to end it.
                    if launch.attempt > 1:
                        earlier = launch.model_copy(update={"attempt": launch.attempt - 1})
                        self._read(context, partial(launcher.stop, earlier.name_in(store)))
                    self._submit(context, launcher, spec)
                is_submitted = True
                status = self._follow(context, launcher, name, messages, adopt)
            except _CANCELLED:
                if is_mine and (launcher.ends_with_run or _is_wanted(context)):
                    self._end(context, launcher, launch, store, _CANCEL_SECONDS)
                # Else, as after an error here, it runs on: an evicted pod gets the signal of a cancelled one.
                raise
            except WorkloadError as error:
                if not is_submitted and not isinstance(error, Unreachable):
                    records.end(store, launch, "failed", str(error), error.failure)
                raise  # else, as after any other error, it may run on, and the next run attaches to it
            status = self._record_end(context, launcher, launch, store, status, is_mine=is_mine)
        return status, is_new

    def _request(
        self,
        context: dg.AssetExecutionContext,
        launcher: Launcher,
        workload: str,
        job: Job,
        arguments: list[str],
    ) -> records.Launch:
        planning = job.settings.planning
        usd = planning.hourly_usd if launcher.settings == job.settings.launcher else 0.0
        return records.Launch(
            case=job.case,
            stage=job.stage,
            key=job.key,
            workload=workload,
            launcher=launcher.settings.model_dump(mode="json"),
            place=self._read(context, lambda: launcher.place),
            run_id=context.run.run_id,
            job=arguments,
            submitted_at=time.time(),
            hourly_usd=usd or launcher.hourly_usd(planning, self.spec(launcher, workload, job).processes),
        )

    def _record_end(
        self,
        context: dg.AssetExecutionContext,
        launcher: Launcher,
        launch: records.Launch,
        store: Store,
        status: Status,
        *,
        is_mine: bool,
    ) -> Status:
        """Record how a job has ended, end what may be left of it, and return that end.

        Args:
            is_mine: whether this run may end it.

        Raises:
            WorkloadError: it failed, may still run, and its backend does not answer.
        """
        if status.state == "gone":
            status = _recorded_end(store, launch) or _lost(launch)
        may_run = status.state == "failed" and not status.is_own_line
        if may_run:
            status = replace(
                status, reason=f"workload {launch.workload} {status.reason}; see the step's stderr"
            )
        # Before the backend forgets it: whoever else follows it reads it here.
        records.end(
            store,
            launch,
            "succeeded" if status.state == "succeeded" else "failed",
            status.reason,
            status.failure,
            status.billed_seconds,
        )
        if (
            is_mine
            and not self._end(context, launcher, launch, store, PATIENCE_SECONDS if may_run else 0.0)
            and may_run
        ):
            records.reopen(store, launch)
            raise WorkloadError(
                f"{status.reason}; {launch.name_in(store)} may still run, and is on record as running",
                status.failure,
            )
        return status

    def _is_lost(
        self,
        context: dg.AssetExecutionContext,
        launcher: Launcher,
        launch: records.Launch,
        store: Store,
        is_followed: Callable[[], bool | None],
    ) -> bool:
        """Return whether a job on record is not at its backend, has not ended, and is not about to be
        submitted by the run that recorded it.
        """
        poll = partial(launcher.poll, launch.name_in(store))
        while self._read(context, poll).state == "gone" and _recorded_end(store, launch) is None:
            if not is_followed():
                return True
            time.sleep(_PAUSE_SECONDS)
        return False

    def _submit(self, context: dg.AssetExecutionContext, launcher: Launcher, spec: LaunchSpec) -> None:
        try:
            launcher.submit(spec)
        except Unreachable as error:
            context.log.warning(f"{error}; asking once more")
            time.sleep(_PAUSE_SECONDS)
            # Only the answer may be lost: what runs, or has ended meanwhile, is not started again.
            if launcher.poll(spec.name).state == "gone":
                launcher.submit(spec)

    def _follow(
        self,
        context: dg.AssetExecutionContext,
        launcher: Launcher,
        name: str,
        messages: "_LogMessages",
        adopt: Callable[[], None],
    ) -> Status:
        """Hand on a job's output until it is over, and return how it ended.

        Args:
            adopt: called at each look, to take the job over from a run that is gone.
        """
        began = time.monotonic()
        cursor = ""
        reasons: set[str] = {""}
        at_first, at_last = launcher.look_seconds
        while True:
            pause = min(at_last, max(at_first, (time.monotonic() - began) / 60))
            status = self._read(context, partial(launcher.poll, name, pause))
            logs = Logs(cursor, is_more=True)
            while logs.is_more:
                logs = self._read(context, partial(launcher.logs, name, logs.cursor))
                messages.forward(logs)
            cursor = logs.cursor
            if status.is_over:
                return status
            if status.state == "pending" and status.reason not in reasons:
                reasons.add(status.reason)
                context.log.info(status.reason)
            adopt()

    def _read(
        self, context: dg.AssetExecutionContext, ask: Callable[[], T], seconds: float | None = None
    ) -> T:
        """Ask a backend, again and again while it does not answer; for `PATIENCE_SECONDS` by default."""
        seconds = PATIENCE_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        is_logged = False
        while True:
            try:
                return ask()
            except Unreachable as error:
                if time.monotonic() >= deadline:
                    raise
                if not is_logged:
                    context.log.warning(f"{error}; asking again for {seconds / 60:g} minutes")
                is_logged = True
                time.sleep(_PAUSE_SECONDS)

    def _end(
        self,
        context: dg.AssetExecutionContext,
        launcher: Launcher,
        launch: records.Launch,
        store: Store,
        seconds: float = 0.0,
    ) -> bool:
        """End a job and remove its resources from the backend. Return whether that succeeded; a failure is
        logged, and no error is raised.

        Args:
            seconds: how long a backend that does not answer is asked again.
        """
        name = launch.name_in(store)
        try:
            self._read(context, partial(launcher.stop, name), seconds)
        except WorkloadError as error:
            context.log.error(
                f"{name} at {launch.place} could not be ended ({error}); if it still runs, end it there, or"
                " launch it again to attach"
            )
            return False
        records.end(store, launch, "stopped", "the run that launched it was cancelled", "preemption")
        return True

    def _end_elsewhere(
        self,
        context: dg.AssetExecutionContext,
        request: records.Launch,
        store: Store,
        is_active: Callable[[str], bool | None],
    ) -> None:
        """End a job at a place that the YAML names no more, where no run follows it and that can be done from
        here; else say that it may run on.
        """
        launch = records.read(store, request)
        if launch is None or launch.ended_at is not None or launch.place == request.place:
            return
        is_followed = launch.run_id != request.run_id and is_active(launch.run_id)
        if is_followed is None:  # a run of another Dagster may follow it
            context.log.warning(
                f"{launch.name_in(store)} at {launch.place} is on record as running; end it there if nobody"
                " waits for it"
            )
        elif not is_followed:
            for line, _ in records.end_orphans(store, [launch]):
                context.log.warning(line)


class _LogMessages(dg.PipesMessageReader):
    _handler: dg.PipesMessageHandler

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, str]]:
        self._handler = handler
        yield {"stdio": "stdout"}

    @property
    def expected_writer_count(self) -> int:
        # The first rank alone sends messages. Dagster's own property warns that it is a preview.
        return 1

    def no_messages_debug_text(self) -> str:
        return "Expected messages in the output of the launched process."

    def forward(self, logs: Logs) -> None:
        for line in logs.messages.splitlines(keepends=True):
            if line.endswith("\n"):  # else the process was killed while it wrote it
                self._handler.handle_message(json.loads(line))
        for line in logs.stdout.splitlines(keepends=True):
            # What a message of Pipes has, in a backend's one stream of output.
            if line.startswith('{"__dagster_pipes_version"') and line.endswith("\n"):
                self._handler.handle_message(json.loads(line))
            else:
                sys.stdout.write(line)
        sys.stderr.write(logs.stderr)
        sys.stdout.flush()
        sys.stderr.flush()


def watched_processes(context: dg.AssetExecutionContext) -> list[int]:
    """Return the processes that a workload on this machine must not outlive: this step's, and its run's
    worker.

    With the in-process executor both are one. Its parent, a code server or a shell, is not among them:
    a reload must not kill a run. The executor logs the worker's pid as the run starts; a logged pid
    counts only if it is an ancestor of this process, because another machine may have written it.
    """
    ancestors = {process.pid for process in psutil.Process().parents()}
    events = context.instance.get_records_for_run(
        context.run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT
    )
    pids = {logged_pid(record.event_log_entry) for record in events.records}
    return [os.getpid(), *sorted(ancestors & pids)]


def _is_wanted(context: dg.AssetExecutionContext) -> bool:
    """Return whether somebody wants the run to end: asked Dagster for it, or pressed Ctrl-C."""
    run = context.instance.get_run_by_id(context.run.run_id)
    ending = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    return run is not None and (run.status in ending or _is_by_hand(run))


def _is_by_hand(run: dg.DagsterRun) -> bool:
    """Return whether somebody may press Ctrl-C: nothing launched the run, or what launched it was started
    from a terminal.
    """
    if run.remote_job_origin is None:
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:  # no process here has a terminal: a pod, a service
        return False
    return True


def _is_active(instance: dg.DagsterInstance, run_id: str) -> bool | None:
    """Return whether a run may still be following a job; None for one that is not of this Dagster, or was
    deleted.
    """
    run = instance.get_run_by_id(run_id)
    return None if run is None else not run.is_finished and not is_gone(instance, run)


def _recorded_end(store: Store, launch: records.Launch) -> Status | None:
    newest = records.read(store, launch)
    if newest is None or newest.attempt != launch.attempt:
        return _lost(launch)
    if newest.ended_at is None:
        return None
    state = "succeeded" if newest.state == "succeeded" else "failed"
    return Status(state, newest.reason, newest.failure, is_own_line=True)


def _lost(launch: records.Launch) -> Status:
    return Status("failed", f"is gone from {launch.place}", "infrastructure")
