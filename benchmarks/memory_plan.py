"""The memory that is counted without weights, over the peak that a training's process reaches: on a CPU, over
a grid of settings.

Each cell is a process of its own: it trains a model of a few kilobytes, so that all libraries are loaded,
then the cell's model for two steps with the platform's engine, as the workload does, and then counts the same
training without weights. Run it with `python -m benchmarks.memory_plan [--every N] [--first K] [--minutes
M]`; a cell by hand: `... CELL FOLDER` with a cell's JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fullft_assets.training.recipe import Recipe

REPOSITORY = Path(__file__).parent.parent
#: Least and most that the estimate may be of the measured peak.
GOAL = (1.00, 1.15)
#: kind, layers, hidden size, vocabulary: state dominates, logits dominate, an encoder as MiniLM.
MODELS = {
    "deep": ("llama", 10, 512, 4_096),
    "wide": ("llama", 8, 256, 49_152),
    "encoder": ("bert", 6, 384, 30_522),
}
LENGTHS = (128, 512)
MICRO_BATCHES = (2, 8)
#: (training.weights, training.precision)
FORMATS = (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "auto"))
OPTIMIZERS = ("adamw", "adafactor", "adafactor_in_backward")
_NUM_STEPS = 2


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    model: str
    length: int
    micro_batch: int
    weights: str
    precision: str
    checkpointing: bool
    optimizer: str

    @property
    def batch_size(self) -> int:
        """Two passes a step, where they can be accumulated."""
        return self.micro_batch * (1 if self.optimizer.endswith("_in_backward") else 2)


@dataclass(frozen=True)
class Measured:
    """Bytes of a cell.

    Attributes:
        libraries: peak of the process before the cell's model.
        peak: of the process at the end.
        estimate: of that peak, counted without weights.
    """

    libraries: int
    peak: int
    estimate: int

    @property
    def ratio(self) -> float:
        """Estimate over the measured peak of the process, which is what has to fit."""
        return self.estimate / self.peak

    @property
    def ratio_beyond_libraries(self) -> float:
        """The same of the training alone."""
        return (self.estimate - self.libraries) / (self.peak - self.libraries)


def cells() -> Iterator[Cell]:
    """Yield the grid."""
    for model, length, micro, (weights, precision), on, optimizer in itertools.product(
        MODELS, LENGTHS, MICRO_BATCHES, FORMATS, (False, True), OPTIMIZERS
    ):
        yield Cell(model, length, micro, weights, precision, on, optimizer)


def measure(cell: Cell, folder: Path) -> Measured:
    """Measure a cell in a process of its own.

    Args:
        folder: with the models, which are written where they are missing.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory_plan",
        "--cell",
        json.dumps(asdict(cell)),
        "--folder",
        str(folder),
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _main_of_cell(cell: Cell, folder: Path) -> None:
    from fullft_assets.models import precision
    from fullft_assets.planning.footprint import peak_on_cpu
    from fullft_assets.training.outline import Outline

    small = _model(folder, "nothing", ("llama", 1, 8, 512))
    _train(_recipe(small, ("llama", 1, 8, 512), 32, 4), _settings(cell, micro_batch=2))
    libraries = _peak_bytes()
    kind = MODELS[cell.model]
    recipe = _recipe(_model(folder, cell.model, kind), kind, cell.length, cell.batch_size)
    settings = _settings(cell)
    _train(recipe, settings)
    peak = _peak_bytes()
    step = Outline(recipe, settings, 1).memory(settings, precision.of(settings), is_gpu=False)
    print(json.dumps(asdict(Measured(libraries, peak, peak_on_cpu(step, libraries)))))


def _settings(cell: Cell, micro_batch: int | None = None) -> Any:
    from fullft_assets.settings import TrainingSettings

    rows = cell.batch_size if micro_batch is None else micro_batch
    return TrainingSettings.model_validate(
        {
            "epochs": 1,
            "batch_size": rows,
            "micro_batch_size": cell.micro_batch if micro_batch is None else micro_batch,
            "learning_rate": 1e-4,
            "optimizer": cell.optimizer,
            "weights": cell.weights,
            "precision": cell.precision,
            "gradient_checkpointing": cell.checkpointing,
            "track": [],
        }
    )


def _model(folder: Path, name: str, kind: tuple[str, int, int, int]) -> Path:
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    path = folder / name
    if path.exists():
        return path
    family, layers, hidden, vocabulary = kind
    torch.manual_seed(0)
    if family == "bert":
        model: Any = BertModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=12,
                intermediate_size=4 * hidden,
            )
        )
    else:
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=8,
            max_position_embeddings=1_024, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    return path


def _recipe(model: Path, kind: tuple[str, int, int, int], length: int, rows_a_step: int) -> Recipe:
    from fullft_assets.snapshot import Split, Training, packing
    from fullft_assets.tasks.classification.recipe import ClassificationRecipe
    from fullft_assets.tasks.language.recipe import NextTokenRecipe

    generator = np.random.default_rng(0)
    windows = generator.integers(3, kind[3], (rows_a_step * _NUM_STEPS, length)).tolist()

    def split(count: int) -> Split:
        names = [str(number) for number in range(count)]
        labels = np.arange(count) % 2
        return Split(names, names, labels, names, [[window] for window in windows[:count]])

    if kind[0] == "bert":
        return ClassificationRecipe(model, split(len(windows)), split(2), ["a", "b"])
    plan = packing.plan(np.array([len(window) for window in windows]), length, 0)
    return NextTokenRecipe(model, Training(windows, None, plan), split(1))


def _train(recipe: Recipe, settings: Any) -> None:
    from fullft_assets.jobs.progress import Progress
    from fullft_assets.training.finetuning import fine_tune

    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        fine_tune(recipe, settings, 1, Path(folder), Progress(silent=True), evaluate_at=(), resumable=False)


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def main(arguments: list[str] | None = None) -> int:
    """Measure the grid, or every Nth cell of it, and print each and the range of the ratios; 1 where one is
    outside the goal.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_plan", description=__doc__)
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="measure every Nth cell of the grid (default: all)"
    )
    parser.add_argument(
        "--first", type=int, default=0, metavar="K", help="begin with the cell at this place (default: 0)"
    )
    parser.add_argument(
        "--minutes", type=float, default=600, metavar="M", help="start no cell after M minutes"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.cell:
        _main_of_cell(Cell(**json.loads(parsed.cell)), parsed.folder)
        return 0
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        for cell in list(cells())[parsed.first :: parsed.every]:
            if time.monotonic() - began > parsed.minutes * 60:
                break
            one = measure(cell, Path(folder))
            found.append(one)
            numbers = f"{one.peak / 2**20:6.0f} MiB, estimated {one.estimate / 2**20:6.0f}: {one.ratio:.3f}"
            print(f"{numbers}, beyond libraries {one.ratio_beyond_libraries:.3f}  {asdict(cell)}", flush=True)
    ratios, beyond = sorted(one.ratio for one in found), sorted(one.ratio_beyond_libraries for one in found)
    print(
        f"{len(found)} cells: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {ratios[len(ratios) // 2]:.3f};"
        f" goal {GOAL[0]:.2f} to {GOAL[1]:.2f}"
    )
    print(f"beyond libraries: {beyond[0]:.3f} to {beyond[-1]:.3f}, median {beyond[len(beyond) // 2]:.3f}")
    return 0 if GOAL[0] <= ratios[0] and ratios[-1] <= GOAL[1] else 1


if __name__ == "__main__":
    sys.exit(main())
