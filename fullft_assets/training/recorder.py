"""Records a training segment as it goes: each line to the step log and to MLflow, each step to the progress,
with the rates of the last steps.
"""

import importlib.util
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError, without_secrets
from fullft_assets.models import layers
from fullft_assets.models.hardware import peak_memory_bytes
from fullft_assets.progress import Progress
from fullft_assets.training.checkpoints import StepLog
from fullft_assets.training.feed import sums_between

#: How the work of this process ended, as a status of MLflow; RUNNING: another segment follows.
Ending = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
#: Beside the step log: the id of the MLflow run, which a resumed training continues.
MLFLOW_RUN = "mlflow_run"
_FLUSH_SECONDS = 10.0
#: Metrics after which they are sent, with those of one more line; MLflow takes 1,000 a call.
_MAX_METRICS = 900


def require_trackers(track: Sequence[str]) -> None:
    """Refuse MLflow where it, or the plugin for a server of SageMaker, is not installed."""
    is_managed = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("arn:")
    packages = {
        "mlflow": "mlflow-skinny` (or the extra `tracking`)",
        **(
            {"sagemaker_mlflow": "sagemaker-mlflow` for the ARN in MLFLOW_TRACKING_URI"} if is_managed else {}
        ),
    }
    for module, package in packages.items():
        if "mlflow" in track and importlib.util.find_spec(module) is None:
            raise SettingsError(
                f"training.track: {module} is not installed; `pip install {package}, or take mlflow out of"
                " the list"
            )


class Tracker:
    """The MLflow run, if the settings name it. If its server fails, it is given up with a line in the log: it
    does not end a run of hours.
    """

    def __init__(self, track: Sequence[str], folder: Path, params: Mapping[str, Any], progress: Progress):
        self._progress = progress
        self._run: _MLflow | None = None
        if "mlflow" in track:
            self._guarded(lambda: setattr(self, "_run", _MLflow(folder, params)))

    def log(self, line: Mapping[str, Any]) -> None:
        """Copy a line of the step log."""
        if self._run is not None:
            self._guarded(partial(self._run.log, line))

    def close(self, ending: Ending) -> None:
        """Send what is still held, and the status of the run."""
        if self._run is not None:
            self._guarded(partial(self._run.close, ending))

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._run = None
            # Before it is cut: half an address is none.
            reason = without_secrets(" ".join(str(error).split()))[:200] or type(error).__name__
            self._progress.say(f"mlflow: tracking failed ({reason}); training continues without it")


class _MLflow:
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
        if "event" in line:
            self._client.set_tag(
                self._run_id, f"event.{line['event']}.{line['step']}", str(line.get("reason", ""))[:500]
            )
            return
        now = int(time.time() * 1000)
        self._held += [
            self._metric(name, float(value), now, line["step"])
            for name, value in line.items()
            if name not in ("step", "seconds") and isinstance(value, int | float)
        ]
        if len(self._held) > _MAX_METRICS or time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self._flush()

    def close(self, ending: Ending) -> None:
        self._flush()
        if ending != "RUNNING":
            self._client.set_terminated(self._run_id, ending)

    def _flush(self) -> None:
        self._client.log_batch(self._run_id, metrics=self._held)
        self._held = []
        self._flushed_at = time.monotonic()


#: Of a configuration: how many experts a layer routes tokens to; and the names of their weights.
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_OF_EXPERT = re.compile(r"\.experts\.")
#: Steps whose rates are averaged.
_WINDOW = 20


@dataclass(frozen=True)
class ModelShape:
    """The parts of a model that cost FLOP. Embeddings are looked up and not multiplied.

    Attributes:
        num_weights: without embeddings and the output head of a language model; of experts as many as compute
            a token.
        num_head_weights: of that head, which is computed where a token is predicted.
    """

    num_weights: int
    num_trained: int
    num_head_weights: int
    num_trained_head_weights: int
    num_layers: int
    hidden: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelShape":
        """Return the shape of a model whose frozen weights are frozen already."""
        head = model.get_output_embeddings()
        head_weights = [] if head is None else list(head.parameters())
        excluded = {id(weight) for weight in head_weights} | {
            id(weight)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for weight in module.parameters()
        }
        config = model.config.get_text_config()
        num_experts = next((getattr(config, name) for name in _NUM_EXPERTS if hasattr(config, name)), None)
        share = layers.experts_a_token(config) / num_experts if num_experts else 1
        sizes = {
            weight: weight.numel() * (share if _OF_EXPERT.search(name) else 1)
            for name, weight in model.named_parameters()
            if id(weight) not in excluded
        }
        return cls(
            num_weights=round(sum(sizes.values())),
            num_trained=round(sum(size for weight, size in sizes.items() if weight.requires_grad)),
            num_head_weights=sum(weight.numel() for weight in head_weights),
            num_trained_head_weights=sum(weight.numel() for weight in head_weights if weight.requires_grad),
            num_layers=getattr(config, "num_hidden_layers", 0),
            hidden=getattr(config, "hidden_size", 0),
        )


def step_flops(
    lengths: np.ndarray, num_predicted: np.ndarray, bounds: np.ndarray, shape: ModelShape
) -> np.ndarray:
    """Return the useful FLOP of each optimizer step [steps]: padding and recomputation do not count.

    2 a weight and token forward, 4 more where the weight is trained, and 12 x layers x hidden x length a
    token for attention (Chowdhery et al. 2022, appendix B).

    Args:
        lengths: tokens of each document that attends to itself alone, in the order of training.
        bounds: [steps + 1] the documents of each step.
    """
    sizes = np.asarray(lengths, np.float64)
    return sums_between(
        (
            sizes * (2 * shape.num_weights + 4 * shape.num_trained)
            + 12 * shape.num_layers * shape.hidden * sizes**2
            + np.asarray(num_predicted)
            * float(2 * shape.num_head_weights + 4 * shape.num_trained_head_weights)
        ),
        bounds,
    )


class Meter:
    """Times the steps; the time between them (validation, checkpoints) does not count.

    Args:
        tokens: useful tokens of each step, over all processes.
        flops: useful FLOP of each step, over all processes.
        peak: FLOP/s of all cards together, or None.
    """

    def __init__(self, tokens: np.ndarray, flops: np.ndarray, peak: float | None):
        self._tokens = tokens
        self._flops = flops
        self._peak = peak
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)
        self._num_steps = 0
        self._started = time.perf_counter()

    def start(self) -> None:
        """Start to time the next step."""
        self._started = time.perf_counter()

    def step_done(self, step: int) -> dict[str, float]:
        """Return the rates of the last steps, this one (1 = the first) included: `tokens_per_second`, and
        `mfu`, the share of the cards' peak, where that is known.
        """
        now = time.perf_counter()
        if self._num_steps == 1:
            # The first step of a process compiles, allocates and skips what was trained before.
            self._recent.clear()
        self._num_steps += 1
        self._recent.append(
            (now - self._started, float(self._tokens[step - 1]), float(self._flops[step - 1]))
        )
        self._started = now
        seconds, tokens, flops = np.sum(self._recent, axis=0)
        seconds = max(seconds, 1e-9)
        mfu = {} if self._peak is None else {"mfu": round(float(flops / seconds / self._peak), 4)}
        return {"tokens_per_second": round(float(tokens / seconds), 1), **mfu}


#: Metrics of a step that its progress line shows.
_SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib")


class StepRecorder:
    """Writes down the metrics of each step, of each validation and of each event."""

    def __init__(self, log: StepLog, tracker: Tracker, meter: Meter, progress: Progress):
        self.log = log
        self.tracker = tracker
        self.meter = meter
        self.progress = progress
        self._started = time.monotonic()

    def start(self) -> None:
        """Start to count the training time."""
        self._started = time.monotonic()
        self.meter.start()

    @property
    def seconds(self) -> float:
        """Training seconds so far, those of earlier segments included."""
        return self.log.seconds_before + time.monotonic() - self._started

    def record(self, line: dict[str, Any]) -> None:
        """Write one line, which has a `step`."""
        self.log.append(line)
        self.tracker.log(line)

    def record_step(self, step: Mapping[str, Any], num_steps: int, *, is_fp16: bool) -> dict[str, Any]:
        """Write the line of an optimizer step and report it; return the line.

        Args:
            step: as `loop.Step.read` returns it.
        """
        # In fp16 the loss scaler tries a scale, skips the step that overflows, and lowers the scale: this is
        # not a divergence.
        line = {
            **step,
            "grad_norm": None if (is_fp16 and not math.isfinite(step["grad_norm"])) else step["grad_norm"],
            **self.meter.step_done(step["step"]),
            "memory_gib": round(peak_memory_bytes() / 2**30, 3),
            "seconds": round(self.seconds, 3),
        }
        self.record(line)
        self.progress.step(step["step"], num_steps, **{name: line[name] for name in _SHOWN})
        return line
