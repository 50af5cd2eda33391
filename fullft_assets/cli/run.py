"""`fullft run`: evaluate a use case's sensors, launch its jobs on the instance, follow them, and sum up.

Runs are launched through the same code location and run launcher as the UI's, so the UI shows them and
can re-execute them.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import dagster as dg
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget, WorkspaceLoadTarget
from dagster_graphql.schema import create_schema

from fullft_assets import documents, evaluation, release
from fullft_assets.assets.case import Case
from fullft_assets.automation import INGEST, MODEL, MONITOR
from fullft_assets.config.validation import find_use_cases, load_use_case, read_dg_project
from fullft_assets.errors import SettingsError, WorkloadError
from fullft_assets.launchers.run_workers import host_tag, settle, waits
from fullft_assets.resources import latest, latest_by_partition, open_store
from fullft_assets.samples import is_dormant
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Manifest, Store

_EVALUATE_SENSOR = """
mutation ($selector: SensorSelector!) { sensorDryRun(selectorData: $selector, cursor: null) {
  __typename
  ... on PythonError { message }
  ... on DryRunInstigationTick { evaluationResult {
    skipReason error { message }
    dynamicPartitionsRequests { partitionKeys partitionsDefName }
    runRequests { tags { key value } } } } } }
"""
_ADD_PARTITION = """
mutation ($key: String!, $name: String!, $repository: RepositorySelector!) {
  addDynamicPartition(partitionKey: $key, partitionsDefName: $name, repositorySelector: $repository) { __typename
    ... on PythonError { message } ... on UnauthorizedError { message } } }
"""
_LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message } ... on InvalidSubsetError { message } ... on PipelineNotFoundError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }
"""
#: What `Progress.step` of a workload says.
_PROGRESS = re.compile(r"step ([\d,]+)/([\d,]+) ")
#: What Dagster itself logs of each step, and of the ones after a failed one.
_NOISE = ("Loaded input", "Dependencies for step", "[pipes]")
_POLL_SECONDS = 0.5
#: Time between two looks at who holds the slot that a step waits for.
_LOOK_SECONDS = 5.0
_FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
#: Longest that a run waits for delivered files that may still be growing.
_SETTLE_SECONDS = 60.0
#: Batches ingested at the same time: their steps are light, and a laptop has two cores.
_PARALLEL_RUNS = 2


@dataclass
class Followed:
    """One launched run and how far its events were read."""

    run_id: str
    job: str
    title: str
    cursor: str | None = None
    steps: dict[str, float] = field(default_factory=dict)
    #: A step waits for a slot of its pool; when that was looked at last, and what was said of it.
    is_blocked: bool = False
    looked_at: float = float("-inf")
    waits: list[str] = field(default_factory=list)


class Screen:
    """Plain lines in a log; in a terminal also one bar that is redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.is_terminal = stream.isatty()
        self.began = time.monotonic()
        self._bar_is_open = False

    def line(self, text: str) -> None:
        """Print one line with the elapsed time."""
        if self._bar_is_open:
            self.stream.write("\r\033[K")
            self._bar_is_open = False
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=self.stream, flush=True)

    def bar(self, title: str, done: int, total: int, message: str) -> None:
        """Redraw the bar."""
        width = 24
        filled = round(width * done / max(1, total))
        print(f"\r\033[K{title} [{'#' * filled}{'.' * (width - filled)}] {message}"[:160], end="", file=self.stream, flush=True)
        self._bar_is_open = True


class Driver:
    """Launches runs of a use case through the workspace, as the UI does."""

    def __init__(self, use_case: UseCase, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext, screen: Screen):
        self.use_case, self.instance, self.workspace = use_case, instance, workspace
        self.schema = create_schema()
        self.screen = screen
        self.seconds: dict[str, float] = {}
        self.location, self.repository = self._find(f"{use_case.name}_model")

    def _find(self, job: str) -> tuple[str, str]:
        """Return the names of the code location and the repository that hold a job."""
        problems = []
        for entry in self.workspace.create_request_context().get_code_location_entries().values():
            if entry.code_location is None:
                problems.append(f"{entry.origin.location_name}: {_deepest(entry.load_error)}")
                continue
            for name, repository in entry.code_location.get_repositories().items():
                if repository.has_job(job):
                    return entry.code_location.name, name
        # One broken use case keeps Dagster from loading any: its own lines say what to mend.
        broken = _broken_use_cases(self.use_case.yaml_path.parent.parent)
        raise SettingsError(
            "\n".join(broken)
            or f"{self.use_case.project_root}: Dagster cannot load the definitions: {'; '.join(problems) or f'no job {job} in them'}"
        )

    def run(self) -> bool:
        """Ingest what is new, make the model, watch production; return whether every run succeeded."""
        self._settle()
        name = self.use_case.name
        ok = self._deliver(f"{name}_new_documents", f"{name}_ingest", "batch")
        if not latest_by_partition(open_store(self.use_case, self.instance), name, "tokenized_chunks"):
            self.screen.line("no batch is usable, so there is nothing to train on; mend what is named above and deliver it again")
            return False
        ok = self._follow([self._launch(f"{name}_model", {}, "model")]) and ok
        if ok and Case(self.use_case).is_monitored:
            ok = self._deliver(f"{name}_new_production_documents", f"{name}_monitor", "window")
        return ok

    def _deliver(self, sensor: str, job: str, kind: documents.Kind) -> bool:
        """Launch and follow what the sensor asks for; where it asks for as much as it may at once, look again for the rest."""
        self._cut_all(kind)
        ok, tried = True, set[str]()
        most = min(self.use_case.settings.documents.max_runs_per_tick, documents.MAX_CUTS)
        while True:
            tick = self._tick(sensor)
            tags = [{tag["key"]: tag["value"] for tag in request["tags"]} for request in tick["runRequests"] or []]
            requests = {each["dagster/partition"]: each for each in tags if each["dagster/partition"] not in tried}
            plural = "" if len(requests) == 1 else "es" if kind == "batch" else "s"
            if requests or not tried:
                self.screen.line(f"{sensor}: {len(requests)} new {kind}{plural}" if requests else f"{sensor}: {tick['skipReason']}")
            tried |= set(requests)
            # A window's workload takes every core: two at once are several times as slow as one after the other.
            at_once = _PARALLEL_RUNS if kind == "batch" else 1
            remaining = iter(requests.items())
            while part := list(islice(remaining, at_once)):
                ok = self._follow([self._launch(job, request, f"{kind} {name}") for name, request in part]) and ok
            if not requests or len(tags) < most:
                return ok

    def _cut_all(self, kind: documents.Kind) -> None:
        """Put all that is delivered into the ledger, which a bounded look of the sensor may not; wait until young files are whole."""
        settings, store = self.use_case.settings.documents, open_store(self.use_case, self.instance)
        if kind == "window" and latest(store, self.use_case.name, "finetuned_checkpoint") is None:
            return  # the sensor does not look either
        began, waits = time.monotonic(), False
        while True:
            found = documents.look(store, self.use_case, kind, whole=True)
            num_young = found.num_unsettled
            if not num_young:
                break
            where = documents.source_of(self.use_case, kind).uri
            if time.monotonic() - began + settings.settle_seconds > _SETTLE_SECONDS:
                self.screen.line(f"{where}: {num_young:,} file(s) are still being written to; run again for them")
                break
            if not waits:
                self.screen.line(f"{where}: {num_young:,} file(s) were just written to; waiting until they are whole")
                waits = True
            time.sleep(min(settings.settle_seconds, _POLL_SECONDS))
        for line in documents.left_in_place(found.others):
            self.screen.line(f"{documents.source_of(self.use_case, kind).uri}: {line}")

    def _tick(self, sensor: str) -> dict[str, Any]:
        """Evaluate a sensor, add the partitions that it asks for, and return what it found."""
        selector = {**self._selector(), "sensorName": sensor}
        tick = self._execute(_EVALUATE_SENSOR, {"selector": selector}, "sensorDryRun")["evaluationResult"]
        if tick["error"]:
            raise WorkloadError(tick["error"]["message"].strip().splitlines()[-1])
        for request in tick["dynamicPartitionsRequests"] or []:
            for key in request["partitionKeys"]:
                variables = {"key": key, "name": request["partitionsDefName"], "repository": self._selector()}
                self._execute(_ADD_PARTITION, variables, "addDynamicPartition")
        return tick

    def _launch(self, job: str, tags: dict[str, str], title: str) -> Followed:
        params = {
            "selector": {**self._selector(), "jobName": job},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags | self._host_tag()).items()]},
        }
        launched = self._execute(_LAUNCH, {"params": params}, "launchRun")
        run_id = launched["run"]["runId"]
        self._take_from_queue(run_id)
        return Followed(run_id, job, title)

    def _take_from_queue(self, run_id: str) -> None:
        """Launch a run that is in the queue where nobody else would; with `make ui` beside, its daemon does."""
        if self.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.QUEUED and not self._daemon_is_alive():
            self.instance.launch_run(run_id, self.workspace.create_request_context())

    def _daemon_is_alive(self) -> bool:
        heartbeat = self.instance.get_daemon_heartbeats().get("QUEUED_RUN_COORDINATOR")
        return heartbeat is not None and time.time() - heartbeat.timestamp < 60

    def _follow(self, runs: list[Followed]) -> bool:
        ok, open_runs = True, list(runs)
        while open_runs:
            time.sleep(_POLL_SECONDS)
            for run in list(open_runs):
                # A daemon that has just ended still counts as alive for a while.
                self._take_from_queue(run.run_id)
                status = self.instance.get_run_by_id(run.run_id).status
                self._show_events(run)
                self._look_at_slots(run)
                if status in _FINISHED:
                    self._show_events(run)
                    open_runs.remove(run)
                    ok = ok and status == dg.DagsterRunStatus.SUCCESS
        return ok

    def _show_events(self, run: Followed) -> None:
        page = self.instance.get_records_for_run(run.run_id, cursor=run.cursor)
        run.cursor = page.cursor
        for record in page.records:
            entry = record.event_log_entry
            event, step = entry.dagster_event, (entry.step_key or "").removeprefix(f"{self.use_case.name}__")
            if event is None:
                self._show_message(run, step, entry.user_message)
            elif event.event_type_value == "STEP_START":
                run.steps[step] = entry.timestamp
                run.is_blocked = False
            elif event.event_type_value == "ENGINE_EVENT":
                run.is_blocked = run.is_blocked or "pool" in event.event_specific_data.metadata  # Dagster waits in silence
            elif event.event_type_value == "STEP_SUCCESS":
                seconds = entry.timestamp - run.steps[step]
                self.seconds[step] = self.seconds.get(step, 0.0) + seconds
                self.screen.line(f"{run.title}: {step} done in {seconds:.1f} s")
            elif event.event_type_value == "ASSET_CHECK_EVALUATION":
                self._show_check(run, event.event_specific_data)
            elif event.event_type_value == "STEP_FAILURE":
                self.screen.line(f"{run.title}: {step} FAILED: {_reason(event)}")
            elif event.event_type_value == "PIPELINE_FAILURE" and not run.steps:
                self.screen.line(f"{run.title}: FAILED: {event.message}")

    def _settle(self) -> None:
        for line in settle(self.instance):
            self.screen.line(line)

    def _look_at_slots(self, run: Followed) -> None:
        """Say at once which run a blocked step waits for, and again when that changes; what a dead run holds is freed."""
        if not run.is_blocked or time.monotonic() - run.looked_at < _LOOK_SECONDS:
            return
        run.looked_at = time.monotonic()
        self._settle()
        before, run.waits = run.waits, waits(self.instance, run.run_id)
        for line in run.waits:
            if line not in before:
                self.screen.line(f"{run.title}: {line}")

    def _host_tag(self) -> dict[str, str]:
        """Return the tag of a run on this machine; other launchers than Dagster's own start runs elsewhere, and see to them."""
        return host_tag() if isinstance(self.instance.run_launcher, DefaultRunLauncher) else {}

    def _show_message(self, run: Followed, step: str, message: str) -> None:
        progress = _PROGRESS.match(message or "")
        if progress and self.screen.is_terminal:
            done, total = (int(number.replace(",", "")) for number in progress.groups())
            self.screen.bar(f"{run.title}: {step}", done, total, message)
        elif message and not message.startswith(_NOISE):
            self.screen.line(f"{run.title}: {step}: {message}")

    def _show_check(self, run: Followed, check: Any) -> None:
        if not check.passed:
            self.screen.line(f"{run.title}: check {check.check_name} is {'RED' if check.blocking else 'yellow'}: {check.description or ''}")

    def _selector(self) -> dict[str, str]:
        return {"repositoryLocationName": self.location, "repositoryName": self.repository}

    def _execute(self, query: str, variables: dict[str, Any], field_name: str) -> dict[str, Any]:
        context = self.workspace.create_request_context()
        result = asyncio.run(self.schema.execute_async(query, variables=variables, context=context))
        if result.errors:
            raise WorkloadError(f"{field_name}: {result.errors[0]}")
        answer = result.data[field_name]
        if "message" in answer or "errors" in answer:
            why = answer.get("message") or answer["errors"][0]["message"]
            raise WorkloadError(f"{field_name}: {why.strip().splitlines()[0]}")
        return answer


def _reason(event: Any) -> str:
    error = event.event_specific_data.error
    metadata = getattr(event.event_specific_data, "user_failure_data", None)
    if metadata is not None and metadata.description:
        return metadata.description
    return _deepest(error)


def _deepest(error: Any) -> str:
    while error.cause is not None:
        error = error.cause
    if error.cls_name == "DagsterAssetCheckFailedError":
        return "the check above is red"
    return error.message.strip().splitlines()[0]


def _broken_use_cases(defs: Path) -> list[str]:
    """Return the lines of every use case below a folder whose YAML is wrong."""
    lines = []
    for path in find_use_cases(defs):
        if is_dormant(path):
            continue
        try:
            load_use_case(path)
        except SettingsError as error:
            lines.append(str(error))
    return lines


def _load_target(project_root: Path) -> WorkspaceLoadTarget:
    """Return what Dagster loads: the project's workspace.yaml, else the module that its pyproject.toml names."""
    workspace_file = project_root / "workspace.yaml"
    if workspace_file.is_file():
        return WorkspaceFileTarget([str(workspace_file)])
    project = read_dg_project(project_root)
    if project is None:
        raise SettingsError(f"{project_root}: neither a workspace.yaml nor [tool.dg.project] in pyproject.toml; add either")
    return ModuleTarget(f"{project.root_module}.definitions", None, str(project.source), project.root_module)


@contextmanager
def _screen(log: Path) -> Iterator[Screen]:
    """Keep the terminal for our lines: what Dagster's processes print of each event goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with os.fdopen(os.dup(1), "w") as terminal, log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Screen(terminal)
        finally:
            for descriptor, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, descriptor)
                os.close(saved)


def run(use_case: UseCase) -> int:
    """Run a use case's whole graph on the instance; return the exit status for the shell."""
    began = time.monotonic()
    target = _load_target(use_case.project_root)
    with dg.DagsterInstance.get() as instance:
        log = Path(instance.root_directory) / "run.log"
        with _screen(log) as screen, WorkspaceProcessContext(instance, target) as workspace:
            driver = Driver(use_case, instance, workspace, screen)
            ok = driver.run()
        lines = summary(use_case, open_store(use_case, instance), driver.seconds, time.monotonic() - began)
    print("\n" + "\n".join(lines), flush=True)
    if not ok:
        print(f"\nAt least one run failed: its line above says why; the whole is in {log} and in the UI.", file=sys.stderr)
    return 0 if ok else 1


def summary(use_case: UseCase, store: Store, seconds: dict[str, float], total: float) -> list[str]:
    """Return the lines that a run ends with: rows, splits, scores, verdict, time, where things lie."""
    name = use_case.name
    lines = [f"{name}: summary"]
    examples = latest_by_partition(store, name, "labeled_examples").values()
    lines.append(
        f"  rows in        {sum(m.metadata['num_rows'] for m in examples):,} in {len(examples)} batches: "
        f"{sum(m.metadata['num_valid'] for m in examples):,} valid, {sum(m.metadata['num_quarantined'] for m in examples):,} quarantined"
    )
    for manifest in examples:
        held_back = [check.description for check in manifest.checks if not check.passed and check.severity == "error"]
        lines += [f"  held back      {description}" for description in held_back]
    snapshot = latest(store, name, "training_snapshot")
    if snapshot is not None:
        counts = snapshot.metadata
        lines.append(
            f"  split          {counts['num_train_rows']:,} train, {counts['num_validation_rows']:,} validation, {counts['num_test_rows']:,} test"
        )
    report = latest(store, name, "evaluation_report")
    if report is not None:
        lines += _scores(store, use_case, report)
    if use_case.settings.monitoring.path is not None and not use_case.settings.examples.has_one_label:
        lines.append("  drift          not watched: that is done for the task classification with one label a row alone")
    for window, drift in latest_by_partition(store, name, "drift_report").items():
        lines.append(f"  drift          {window}: {drift.metadata['status']}; {drift.metadata['summary']}")
    stages = {"ingest": INGEST, "model": MODEL, "monitor": MONITOR}
    known = {asset for assets in stages.values() for asset in assets} | set(seconds)
    spent = ", ".join(f"{step} {seconds[step]:.1f} s" for step in seconds if step in known)
    lines.append(f"  time           {total:.1f} s in all: {spent}")
    if report is not None:
        lines.append(f"  report         {store.folder(report) / 'report.html'}")
    champion = release.read_champion(store, name)
    if champion is not None:
        lines.append(f"  model          {store.folder(store.load(champion.checkpoint)) / 'model'}")
        lines.append(f"  try it         {_command('fullft')} predict {name} 'some text'")
    has_make = (use_case.project_root / "Makefile").is_file()
    home = os.environ["DAGSTER_HOME"]
    lines.append("  look at it     " + ("make ui" if has_make else f"DAGSTER_HOME={home} {_command('dg')} dev"))
    return lines


def _command(name: str) -> str:
    """Return a console script of this environment as a person here would type it."""
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _scores(store: Store, use_case: UseCase, report: Manifest) -> list[str]:
    found = report.metadata
    others = evaluation.systems(found)[1:]
    champion = release.read_champion(store, use_case.name)
    is_champion = champion is not None and champion.checkpoint == found["checkpoint"]
    primary = found["primary_metric"]
    # Perplexity says what a language model's token probability does in the words that people know.
    metrics = ("token_probability", "perplexity") if "perplexity" in found else (primary if f"{primary}_low" in found else "macro_f1",)
    lines = []
    for metric in metrics:
        heading = f"test {evaluation.title(metric)}"
        ours = f"{found[metric]:.3f} [{found[f'{metric}_low']:.3f}, {found[f'{metric}_high']:.3f}] fine-tuned"
        figures = [ours, ", ".join(f"{found[f'{name}_{metric}']:.3f} {name}" for name in others if f"{name}_{metric}" in found)]
        lines.append(f"  {heading:<14} {'; '.join(figures)}")
    return [
        *lines,
        f"  gain           {found['gain_over_best_baseline']:+.3f} [{found['gain_over_best_baseline_low']:+.3f}, "
        f"{found['gain_over_best_baseline_high']:+.3f}] over {found['best_baseline']}",
        f"  verdict        {found['verdict']}" + (" It is the champion now." if is_champion else ""),
    ]
