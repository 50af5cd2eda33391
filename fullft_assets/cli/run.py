"""`fullft run` and `fullft ingest`: evaluate a use case's sensors, launch its jobs on the instance, follow
them, and sum up.

Runs are launched through the same code location and run launcher as those of Dagster's UI, so the UI shows
them and can re-execute them.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
from dagster._cli.workspace.cli_target import get_workspace_from_cli_opts
from dagster_graphql.schema import create_schema
from dagster_shared.cli import WorkspaceOpts

from fullft_assets import automation, documents
from fullft_assets.artifacts import FINETUNED_CHECKPOINT, TOKENIZED_CHUNKS
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.checking.validation import load_use_case
from fullft_assets.cli.follower import (
    POLL_SECONDS,
    FollowedRun,
    Follower,
    Terminal,
    deepest_cause,
    own_terminal,
)
from fullft_assets.cli.workspace import workspace_file
from fullft_assets.errors import FullftError, SettingsError, WorkloadError
from fullft_assets.resources import latest, latest_by_partition, open_store
from fullft_assets.resources.run_workers import end_waiting, host_tag
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store

# Private: Dagster has no public way to load a workspace without a webserver. tests/test_private_dagster.py
# names the release.


_EVALUATE_SENSOR = """
mutation ($selector: SensorSelector!) { sensorDryRun(selectorData: $selector, cursor: null) {
  __typename
  ... on PythonError { message }
  ... on DryRunInstigationTick { evaluationResult {
    skipReason error { message }
    dynamicPartitionsRequests { partitionKeys partitionsDefName }
    runRequests { tags { key value } } } } } }
"""
_LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message } ... on InvalidSubsetError { message }
  ... on PipelineNotFoundError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }
"""
#: A daemon whose last heartbeat is older does not take runs from the queue.
_HEARTBEAT_SECONDS = 60


class LocationError(FullftError, failure="settings"):
    """The definitions cannot be loaded, or have no such job."""


@contextmanager
def open_code_location(
    instance: dg.DagsterInstance, workspace_file: Path, job: str
) -> Iterator["CodeLocation"]:
    """Load the code locations of a workspace.yaml and yield the one that has a job.

    Raises:
        LocationError: there is none.
    """
    with get_workspace_from_cli_opts(
        instance, dg.__version__, WorkspaceOpts(workspace=[str(workspace_file)])
    ) as request:
        yield CodeLocation(instance, request.process_context.create_request_context, job)


class CodeLocation:
    """The code location that has a job.

    Args:
        instance: where runs are launched.
        new_request: makes the context of a request to the workspace; a context caches what it has read, so
            each request has its own.
        job: name of the job.
    """

    def __init__(self, instance: dg.DagsterInstance, new_request: Callable[[], Any], job: str):
        self.instance = instance
        self._new_request = new_request
        self._schema = create_schema()
        self._selector = self._find(job)

    def _find(self, job: str) -> dict[str, str]:
        problems = []
        for entry in self._new_request().get_code_location_entries().values():
            if entry.code_location is None:
                problems.append(f"{entry.origin.location_name}: {deepest_cause(entry.load_error)}")
                continue
            for name, repository in entry.code_location.get_repositories().items():
                if repository.has_job(job):
                    return {"repositoryLocationName": entry.code_location.name, "repositoryName": name}
        raise LocationError(
            f"Dagster cannot load the definitions: {'; '.join(problems) or f'no job {job} in them'}"
        )

    def tick(self, sensor: str) -> dict[str, Any]:
        """Evaluate a sensor, add the partitions that it asks for, and return its `skipReason` and
        `runRequests`.

        Raises:
            WorkloadError: the sensor failed.
        """
        tick = self._execute(
            _EVALUATE_SENSOR, {"selector": {**self._selector, "sensorName": sensor}}, "sensorDryRun"
        )["evaluationResult"]
        if tick["error"]:
            raise WorkloadError(tick["error"]["message"].strip().splitlines()[-1])
        for request in tick["dynamicPartitionsRequests"] or []:
            self.instance.add_dynamic_partitions(request["partitionsDefName"], request["partitionKeys"])
        return tick

    def launch(self, job: str, tags: dict[str, str]) -> str:
        """Launch a job and return the run's id."""
        params = {
            "selector": {**self._selector, "jobName": job},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        run_id = self._execute(_LAUNCH, {"params": params}, "launchRun")["run"]["runId"]
        self.launch_queued(run_id)
        return run_id

    def launch_queued(self, run_id: str) -> None:
        """Launch a run that is in the queue where nobody else would; with `make ui` beside, its daemon
        does.
        """
        run = self.instance.get_run_by_id(run_id)
        heartbeat = self.instance.get_daemon_heartbeats().get("QUEUED_RUN_COORDINATOR")
        # One of a daemon that has just ended still counts for a while.
        has_daemon = heartbeat is not None and time.time() - heartbeat.timestamp < _HEARTBEAT_SECONDS
        if run is not None and run.status == dg.DagsterRunStatus.QUEUED and not has_daemon:
            self.instance.launch_run(run_id, self._new_request())

    def _execute(self, query: str, variables: dict[str, Any], field_name: str) -> dict[str, Any]:
        result = asyncio.run(
            self._schema.execute_async(query, variables=variables, context=self._new_request())
        )
        if result.errors or result.data is None:
            raise WorkloadError(f"{field_name}: {result.errors[0] if result.errors else 'no answer'}")
        answer = result.data[field_name]
        if "message" in answer or "errors" in answer:
            why = answer.get("message") or answer["errors"][0]["message"]
            raise WorkloadError(f"{field_name}: {why.strip().splitlines()[0]}")
        return answer


#: Longest that a run waits for delivered files that may still be growing.
_SETTLE_SECONDS = 60.0
_ONE_WISH_SECONDS = 1.0
_COMMAND_TAG = "fullft/command"
#: Batches ingested at the same time: their steps are light, and a laptop has two cores.
_PARALLEL_RUNS = 2


def drive(
    use_case: UseCase,
    do: Callable[["Driver"], bool],
    sum_up: Callable[[UseCase, Store, float], list[str]],
) -> int:
    """Do what a command does with a use case on the instance; return the exit status for the shell.

    Args:
        do: `Driver.run` or `Driver.ingest`.
        sum_up: returns the lines that the command ends with.
    """
    began = time.monotonic()
    with (
        interrupted_by_signals(),
        dg.DagsterInstance.get() as instance,
        workspace_file(use_case.project_root) as workspace,
    ):
        log = Path(instance.root_directory) / "run.log"
        store = open_store(use_case, instance)
        if not documents.list_batches(store, use_case.name):
            # Nothing was ever ingested: what keeps it from being ingested now is said before definitions
            # load, which takes seconds.
            load_use_case(use_case.yaml_path, use_case.document, with_data=True)

        def with_names(text: str) -> str:
            return documents.restore(
                text, lambda: [path for _, _, path in documents.named_files(store, use_case.name)]
            )

        try:
            with (
                own_terminal(log, with_names) as terminal,
                open_code_location(instance, workspace, f"{use_case.name}_model") as location,
            ):
                driver = Driver(use_case, instance, store, location, terminal)
                with driver.stopping():
                    ok = do(driver)
        except LocationError as error:
            raise SettingsError(f"{use_case.project_root}: {error}") from error
        lines = sum_up(use_case, store, time.monotonic() - began)
    print("\n" + "\n".join(map(with_names, lines)), flush=True)
    if not ok:
        print(
            f"\nAt least one run failed: its line above gives the reason; all events are in {log} and in"
            " the UI. The same command makes what is missing, and a training goes on at its last checkpoint.",
            file=sys.stderr,
        )
    return 0 if ok else 1


class Driver:
    """Runs a use case: launches what its sensors ask for, and its model job."""

    def __init__(
        self,
        use_case: UseCase,
        instance: dg.DagsterInstance,
        store: Store,
        location: CodeLocation,
        terminal: Terminal,
    ):
        self.use_case = use_case
        self.instance = instance
        self.store = store
        self.location = location
        self.terminal = terminal
        self.follower = Follower(instance, terminal, use_case.name, location.launch_queued)
        #: Tag of the runs that this command launches.
        self.command = {_COMMAND_TAG: str(uuid4())}

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Where this process is interrupted, end the runs that it launched, their jobs included, and wait for
        their end.
        """
        try:
            yield
        except KeyboardInterrupt:
            open_runs = [
                run.run_id
                for run in self.instance.get_runs(dg.RunsFilter(tags=self.command))
                if not run.is_finished
            ]
            for run_id in open_runs:
                # A terminal sends Ctrl-C to the run's own process, too; a signal to this process alone does
                # not reach it.
                self.instance.run_coordinator.cancel_run(run_id)
            if open_runs:
                self.terminal.line(
                    f"stopping {len(open_runs)} run(s): what trains writes its checkpoint; once more leaves"
                    " them to themselves"
                )
            while any(
                (run := self.instance.get_run_by_id(run_id)) is not None and not run.is_finished
                for run_id in open_runs
            ):
                for run_id in open_runs:
                    end_waiting(self.instance, run_id)
                self.follower.settle()
                time.sleep(POLL_SECONDS)
            raise

    def ingest(self) -> bool:
        """Ingest what is new and freeze the snapshot; return whether every run succeeded."""
        ok, is_usable = self._ingest()
        return (
            is_usable
            and self.follower.follow([self.launch(f"{self.use_case.name}_snapshot", {}, "snapshot")])
            and ok
        )

    def run(self) -> bool:
        """Ingest what is new, make the model, watch production; return whether every run succeeded."""
        name = self.use_case.name
        ok, is_usable = self._ingest()
        if not is_usable:
            return False
        ok = self.follower.follow([self.launch(f"{name}_model", {}, "model")]) and ok
        if ok and CaseGraph(self.use_case).has_windows:
            ok = self._deliver(f"{name}_new_production_documents", f"{name}_monitor", "window")
        return ok

    def _ingest(self) -> tuple[bool, bool]:
        self.follower.settle()
        name = self.use_case.name
        ok = self._deliver(f"{name}_new_documents", f"{name}_ingest", "batch")
        is_usable = bool(latest_by_partition(self.store, name, TOKENIZED_CHUNKS))
        if not is_usable:
            self.terminal.line(
                "no batch is usable, so there is nothing to train on; fix what is named above and deliver it"
                " again"
            )
        return ok, is_usable

    def launch(self, job: str, tags: dict[str, str], title: str) -> FollowedRun:
        """Launch a job; its lines begin with the title."""
        return FollowedRun(self.location.launch(job, tags | host_tag(self.instance) | self.command), title)

    def _deliver(self, sensor: str, job: str, kind: documents.Kind) -> bool:
        """Launch and follow what the sensor asks for; where it asks for as much as it may at once, evaluate
        it again for the rest.
        """
        # Before the first model, the sensor does not look at windows either.
        if kind == "batch" or latest(self.store, self.use_case.name, FINETUNED_CHECKPOINT) is not None:
            cut_all(self.use_case, self.store, kind, self.terminal)
        ok = True
        requested: set[str] = set()
        while True:
            tick = self.location.tick(sensor)
            due_tags = [
                {tag["key"]: tag["value"] for tag in request["tags"]} for request in tick["runRequests"] or []
            ]
            # What the sensor asks for later, or leaves to a person, a person asks for now.
            held_tags = [
                {"dagster/partition": str(request.partition_key), **request.tags}
                for request in automation.find_due(
                    CaseGraph(self.use_case), self.instance, self.store, kind, job
                ).held
            ]
            requests = {
                tags["dagster/partition"]: tags
                for tags in [*due_tags, *held_tags]
                if tags["dagster/partition"] not in requested
            }
            plural = "" if len(requests) == 1 else "es" if kind == "batch" else "s"
            if requests or not requested:
                self.terminal.line(
                    f"{sensor}: {len(requests)} new {kind}{plural}"
                    if requests
                    else f"{sensor}: {tick['skipReason']}"
                )
            requested |= set(requests)
            # A window's workload takes every core: two at once are several times as slow as one after the
            # other.
            at_once = _PARALLEL_RUNS if kind == "batch" else 1
            remaining = iter(requests.items())
            while part := list(islice(remaining, at_once)):
                runs = [self.launch(job, tags, f"{kind} {name}") for name, tags in part]
                ok = self.follower.follow(runs) and ok
            if not requests or len(due_tags) < min(documents.MAX_RUNS_A_TICK, documents.MAX_CUTS):
                return ok


def cut_all(use_case: UseCase, store: Store, kind: documents.Kind, terminal: Terminal) -> None:
    """Put all that is delivered into the ledger, which a bounded look of the sensor may not; wait until young
    files are complete.
    """
    settle_seconds = use_case.settings.documents.settle_seconds
    where = documents.source_of(use_case, kind).uri
    look = documents.look(store, use_case, kind, whole=True)
    if look.num_unsettled and settle_seconds <= _SETTLE_SECONDS:
        terminal.line(
            f"{where}: {look.num_unsettled:,} file(s) were just written to; waiting until they are complete"
        )
        time.sleep(settle_seconds + POLL_SECONDS)
        look = documents.look(store, use_case, kind, whole=True)
    if look.num_unsettled:
        terminal.line(
            f"{where}: {look.num_unsettled:,} file(s) are still being written to; run again for them"
        )
    # Where nothing was cut, the sensor says it.
    waiting = [look.open_window] if look.cut and look.open_window else []
    for line in (
        *documents.left_in_place(look.others, named=True),
        *documents.skipped(look.skipped, named=True),
        *waiting,
    ):
        terminal.line(f"{where}: {line}")


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let the signals of `kill` and of a closed terminal interrupt this process as Ctrl-C does, unless it
    ignores them (as under nohup).

    Signals within a second are one wish: `timeout make run` sends one to all processes, and make another.
    """
    interrupted_at = float("-inf")

    def interrupt(*_: Any) -> None:
        nonlocal interrupted_at
        if time.monotonic() - interrupted_at >= _ONE_WISH_SECONDS:
            interrupted_at = time.monotonic()
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
