"""How a training run is seen while it runs: rates per step, and the trackers that its step log is copied to."""

from __future__ import annotations

import importlib.util
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fullft_assets.engine.feed import sums_between
from fullft_assets.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fullft_assets.jobs.process import Progress

#: How the work of this process ended, in MLflow's words; RUNNING: it goes on.
Ending = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
#: Folder of TensorBoard's event files, beside the step log.
EVENT_FILES = "tensorboard"
#: Steps whose rates are averaged.
_WINDOW = 20
#: Dense peak of one card in FLOP/s by part of its name: (bf16 or fp16, fp32 without TF32). From the makers' data sheets, which give TF32
#: half of the first on every card that has it; the first match counts, so the narrower names stand first.
_PEAKS = (
    ("B200", 2250e12, 75e12),
    ("GH200", 989e12, 67e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("A10G", 70e12, 31e12),
    ("A10", 125e12, 31e12),
    ("A40", 150e12, 37e12),
    ("A30", 165e12, 10.3e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("RTX A6000", 155e12, 38.7e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("V100", 125e12, 15.7e12),
    ("T4", 65e12, 8.1e12),
    ("MI300X", 1307e12, 163e12),
    ("MI250X", 383e12, 48e12),
)


def peak_flops(device: str, precision: str) -> float | None:
    """Return the dense peak of a card in FLOP/s; None where it is not known, as for every CPU.

    Args:
        device: the card's name as its driver says it.
        precision: fp32, tf32, bf16 or fp16.
    """
    for name, half, single in _PEAKS:
        if name in device:
            return {"fp32": single, "tf32": half / 2}.get(precision, half)
    return None


@dataclass(frozen=True)
class Shape:
    """What of a model costs FLOP. Embeddings are looked up and not multiplied.

    Attributes:
        num_weights: without embeddings and the output head of a language model.
        num_trained: those of them that are trained.
        num_head_weights: of that head, which is computed where a token is predicted.
        num_trained_head_weights: those of them that are trained.
        num_layers, hidden: of the model.
    """

    num_weights: int
    num_trained: int
    num_head_weights: int
    num_trained_head_weights: int
    num_layers: int
    hidden: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """Return that of a model, its frozen weights known."""
        from torch import nn

        head = model.get_output_embeddings()
        head_weights = [] if head is None else list(head.parameters())
        modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        apart = {id(weight) for weight in [*head_weights, *(weight for module in modules for weight in module.parameters())]}
        weights = [weight for weight in model.parameters() if id(weight) not in apart]
        return cls(
            num_weights=sum(weight.numel() for weight in weights),
            num_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
            num_head_weights=sum(weight.numel() for weight in head_weights),
            num_trained_head_weights=sum(weight.numel() for weight in head_weights if weight.requires_grad),
            num_layers=getattr(model.config, "num_hidden_layers", 0),
            hidden=getattr(model.config, "hidden_size", 0),
        )


def step_flops(lengths: np.ndarray, num_predicted: np.ndarray, bounds: np.ndarray, shape: Shape) -> np.ndarray:
    """Return the useful FLOP of each optimizer step [steps]: padding and recomputation do not count.

    2 a weight and token forward, 4 more where it is trained, and 12 x layers x hidden x length a token for attention
    (Chowdhery et al. 2022, appendix B).

    Args:
        lengths: tokens of each document that attends to itself alone, in the order of training.
        num_predicted: tokens of each that a language model's head is computed for.
        bounds: [steps + 1] the documents of each step.
        shape: of the model.
    """
    sizes = np.asarray(lengths, np.float64)
    found = sizes * (2 * shape.num_weights + 4 * shape.num_trained) + 12 * shape.num_layers * shape.hidden * sizes**2
    found += np.asarray(num_predicted) * float(2 * shape.num_head_weights + 4 * shape.num_trained_head_weights)
    return sums_between(found, bounds)


@dataclass(frozen=True)
class Rates:
    """Rates over the last steps; `mfu` is the share of the card's peak, None where that is not known."""

    tokens_per_second: float
    data_wait_share: float
    mfu: float | None


class Meter:
    """Times the steps; what is between them (validation, checkpoints) does not count.

    Args:
        tokens: useful tokens of each step, over all processes.
        flops: useful FLOP of each step, over all processes.
        peak: FLOP/s of all cards together, or None.
    """

    def __init__(self, tokens: np.ndarray, flops: np.ndarray, peak: float | None):
        self._tokens, self._flops, self._peak = tokens, flops, peak
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=_WINDOW)
        self._waited = 0.0
        self._num_seen = 0
        self._mark = time.perf_counter()

    def go(self) -> None:
        """Time runs from here."""
        self._mark, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Count time in which the next batches were waited for."""
        self._waited += seconds

    def step_done(self, step: int) -> Rates:
        """Return the rates of the last steps, this one (1 = the first) included."""
        now = time.perf_counter()
        if self._num_seen == 1:
            self._recent.clear()  # The first step of a process compiles, allocates and skips what was trained before.
        self._num_seen += 1
        self._recent.append((now - self._mark, self._waited, float(self._tokens[step - 1]), float(self._flops[step - 1])))
        self._mark, self._waited = now, 0.0
        seconds, waited, tokens, flops = np.sum(self._recent, axis=0)
        seconds = max(seconds, 1e-9)
        mfu = None if self._peak is None else float(flops / seconds / self._peak)
        return Rates(float(tokens / seconds), float(min(1.0, waited / seconds)), mfu)


class Tracker(Protocol):
    """Takes the lines of the step log."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Take one line with a `step`."""
        ...

    def close(self, ending: Ending) -> None:
        """Hand over what is still held and say how the run ended."""
        ...


def require(track: Sequence[str]) -> None:
    """Refuse a tracker that is asked for by name and not installed; TensorBoard's is optional.

    Raises:
        SettingsError: MLflow is missing.
    """
    if "mlflow" in track and importlib.util.find_spec("mlflow") is None:
        raise SettingsError(
            "training.track: mlflow is not installed; `pip install mlflow-skinny` (or the extra `tracking`), or take it out of the list"
        )


class Trackers:
    """All trackers that the settings name. One that fails is given up with a line: a run of hours does not end with it.

    Args:
        track: their names.
        folder: of the unfinished work; what a tracker must remember over a resume lies there.
        resumed_from: step that training goes on from.
        params: settings shown beside the run.
        progress: told what is not there.
    """

    def __init__(self, track: Sequence[str], folder: Path, resumed_from: int, params: Mapping[str, Any], progress: Progress):
        self._progress = progress
        self._open: dict[str, Tracker] = {}
        if "tensorboard" in track:
            if importlib.util.find_spec("tensorboard") is None:
                progress.say("tensorboard is not installed: no event files beside metrics.jsonl (extra `tracking`)")
            else:
                self._open["tensorboard"] = TensorBoard(folder / EVENT_FILES, resumed_from)
        if "mlflow" in track:
            self._guarded("mlflow", lambda: self._open.update(mlflow=MLflow(folder, params)))

    def log(self, line: Mapping[str, Any]) -> None:
        """Copy a line to every tracker."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(line))

    def close(self, ending: Ending) -> None:
        """Close every tracker."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(ending))

    def _guarded(self, name: str, call: Any) -> None:
        try:
            call()
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._progress.say(f"{name}: tracking failed ({reason}); training goes on without it")


class TensorBoard:
    """Event files; steps after the checkpoint that is resumed from are marked as superseded.

    Args:
        folder: of the event files.
        resumed_from: step of the checkpoint.
    """

    def __init__(self, folder: Path, resumed_from: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_from + 1 if resumed_from else None)

    def log(self, line: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        if "event" in line:
            self._writer.add_text(f"event/{line['event']}", str(line.get("reason", "")), line["step"])
            return
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self, ending: Ending) -> None:
        """See `Tracker`."""
        self._writer.close()


class MLflow:
    """A run on the server that the environment names (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME); a resume goes on in the same run.

    Args:
        folder: of the unfinished work; its last two names, stage and key, name the run.
        params: settings shown beside the run.
    """

    _FLUSH_SECONDS = 10.0
    _MOST_METRICS = 900  # MLflow takes 1,000 a call

    def __init__(self, folder: Path, params: Mapping[str, Any]):
        # Its own defaults let training wait minutes for a server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        self._held: list[Any] = []
        self._flushed_at = time.monotonic()
        remembered = folder / "mlflow_run"
        if remembered.is_file():
            self._run_id = remembered.read_text()
            self._client.update_run(self._run_id, "RUNNING")
            return
        with mlflow.start_run(run_name="/".join(folder.parts[-2:])) as run:
            self._run_id = run.info.run_id
        remembered.write_text(self._run_id)
        entries = [self._entities.Param(name, str(value)[:500]) for name, value in params.items()]
        self._client.log_batch(self._run_id, params=entries[:100])

    def log(self, line: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        if "event" in line:
            self._client.set_tag(self._run_id, f"event.{line['event']}.{line['step']}", str(line.get("reason", ""))[:500])
            return
        now = int(time.time() * 1000)
        self._held += [self._entities.Metric(name, value, now, line["step"]) for name, value in scalars(line).items()]
        if len(self._held) > self._MOST_METRICS or time.monotonic() - self._flushed_at > self._FLUSH_SECONDS:
            self._flush()

    def close(self, ending: Ending) -> None:
        """See `Tracker`."""
        self._flush()
        if ending != "RUNNING":
            self._client.set_terminated(self._run_id, ending)

    def _flush(self) -> None:
        while self._held:
            self._client.log_batch(self._run_id, metrics=self._held[: self._MOST_METRICS])
            del self._held[: self._MOST_METRICS]
        self._flushed_at = time.monotonic()


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the step log under the names that dashboards group by."""
    shown = {}
    for name, value in line.items():
        if name in ("step", "seconds") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        group, _, rest = name.partition("_")
        shown[f"{group}/{rest}" if group in ("validation", "general") else f"train/{name}"] = float(value)
    return shown
