"""A project's code location, as Dagster's UI uses it: evaluate its sensors, launch its jobs.

Runs are launched through the same code location and run launcher as the UI's, so the UI shows them and
can re-execute them.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

# Private: Dagster has no public way to load a workspace without a webserver. tests/test_private_dagster.py
# names the release.
from dagster._cli.workspace.cli_target import get_workspace_from_cli_opts
from dagster_graphql.schema import create_schema
from dagster_shared.cli import WorkspaceOpts

from fullft_assets.cli.follower import deepest_cause
from fullft_assets.errors import FullftError, WorkloadError

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


class LocationError(FullftError):
    """The definitions cannot be loaded, or have no such job."""

    failure = "settings"


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
        self.instance, self._new_request = instance, new_request
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
        selector = {**self._selector, "sensorName": sensor}
        tick = self._execute(_EVALUATE_SENSOR, {"selector": selector}, "sensorDryRun")["evaluationResult"]
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
        if (
            run is not None
            and run.status == dg.DagsterRunStatus.QUEUED
            and not daemon_is_alive(self.instance)
        ):
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


def daemon_is_alive(instance: dg.DagsterInstance) -> bool:
    """Return whether a daemon takes runs from the queue; one that has just ended still counts for a while."""
    heartbeat = instance.get_daemon_heartbeats().get("QUEUED_RUN_COORDINATOR")
    return heartbeat is not None and time.time() - heartbeat.timestamp < _HEARTBEAT_SECONDS
