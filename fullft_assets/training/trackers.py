"""Trackers: the step log is copied to TensorBoard's event files and to MLflow.

Trainer's own callbacks are not used. After a resume theirs begin another MLflow run, and leave the steps that
a roll-back undid in the event files; a server that is down ends the training.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fullft_assets.errors import SettingsError, without_secrets

if TYPE_CHECKING:
    from fullft_assets.jobs.progress import Progress

#: How the work of this process ended, as a status of MLflow; RUNNING: another segment follows.
Ending = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
#: Folder of TensorBoard's event files, beside the step log.
EVENT_FILES = "tensorboard"
#: Beside the step log: the id of the MLflow run, which a resumed training continues.
MLFLOW_RUN = "mlflow_run"
_FLUSH_SECONDS = 10.0
#: Metrics sent at once; MLflow takes 1,000 a call.
_MAX_METRICS = 900


def require_trackers(track: Sequence[str]) -> None:
    """Refuse MLflow where it is not installed; TensorBoard is optional."""
    if "mlflow" in track and importlib.util.find_spec("mlflow") is None:
        raise SettingsError(
            "training.track: mlflow is not installed; `pip install mlflow-skinny` (or the extra `tracking`),"
            " or take it out of the list"
        )


class Trackers:
    """All trackers that the settings name. One that fails is dropped with a line in the log: it does not end
    a run of hours.
    """

    def __init__(
        self,
        track: Sequence[str],
        folder: Path,
        resumed_from: int,
        params: Mapping[str, Any],
        progress: Progress,
    ):
        self._progress = progress
        self._open: dict[str, TensorBoard | MLflow] = {}
        if "tensorboard" in track:
            if importlib.util.find_spec("tensorboard") is None:
                progress.say(
                    "tensorboard is not installed: no event files beside metrics.jsonl (extra `tracking`)"
                )
            else:
                self._open["tensorboard"] = TensorBoard(folder / EVENT_FILES, resumed_from)
        if "mlflow" in track:
            self._guarded("mlflow", lambda: self._open.update(mlflow=MLflow(folder, params)))

    def log(self, line: Mapping[str, Any]) -> None:
        """Copy a line of the step log to every tracker."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(line))

    def close(self, ending: Ending) -> None:
        """Send what is still held, and the status of the run."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(ending))

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._open.pop(name, None)
            # Before it is cut: half an address is none.
            reason = without_secrets(" ".join(str(error).split()))[:200] or type(error).__name__
            self._progress.say(f"{name}: tracking failed ({reason}); training continues without it")


class TensorBoard:
    """Event files; steps after the checkpoint that training resumes from are marked as superseded."""

    def __init__(self, folder: Path, resumed_from: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_from + 1 if resumed_from else None)

    def log(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of a line, or an event as text."""
        if "event" in line:
            self._writer.add_text(f"event/{line['event']}", str(line.get("reason", "")), line["step"])
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self, ending: Ending) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow:
    """A run on the server that the environment names (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME); a resume
    continues the same run.
    """

    def __init__(self, folder: Path, params: Mapping[str, Any]):
        # With its own defaults training waits minutes for a server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = mlflow.MlflowClient()
        self._held: list[Metric] = []
        self._flushed_at = time.monotonic()
        remembered = folder / MLFLOW_RUN
        if remembered.is_file():
            self._run_id = remembered.read_text()
            self._client.update_run(self._run_id, "RUNNING")
            return
        # Named after the stage and the key of the work.
        with mlflow.start_run(run_name="/".join(folder.parts[-2:])) as run:
            self._run_id = run.info.run_id
        remembered.write_text(self._run_id)
        self._client.log_batch(
            self._run_id, params=[Param(name, str(value)[:500]) for name, value in params.items()][:100]
        )

    def log(self, line: Mapping[str, Any]) -> None:
        """Hold the numbers of a line until the next flush, or write an event as a tag."""
        if "event" in line:
            self._client.set_tag(
                self._run_id, f"event.{line['event']}.{line['step']}", str(line.get("reason", ""))[:500]
            )
        now = int(time.time() * 1000)
        self._held += [self._metric(name, value, now, line["step"]) for name, value in scalars(line).items()]
        if len(self._held) > _MAX_METRICS or time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self._flush()

    def close(self, ending: Ending) -> None:
        """Send what is held, and the status of the run."""
        self._flush()
        if ending != "RUNNING":
            self._client.set_terminated(self._run_id, ending)

    def _flush(self) -> None:
        while self._held:
            self._client.log_batch(self._run_id, metrics=self._held[:_MAX_METRICS])
            del self._held[:_MAX_METRICS]
        self._flushed_at = time.monotonic()


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the step log by the names that dashboards group them by; none of an
    event.
    """
    numbers = {}
    for name, value in line.items() if "event" not in line else ():
        if name in ("step", "seconds") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        group, _, metric = name.partition("_")
        numbers[f"{group}/{metric}" if group in ("validation", "general") else f"train/{name}"] = float(value)
    return numbers
