"""Peak memory of each rung of the memory ladder, relative to AdamW in fp32.

Each rung is a process of its own, which trains a Llama of 34 million weights for a few steps with the platform's engine: few
tokens, so that weights, gradients and moments are nearly all that there is. Its peak is that of its resident set beyond what
it was after a training of a model of a few kilobytes, when all libraries were loaded; on a GPU, that of the allocator.

One rung by hand: `python -m benchmarks.low_memory OPTIMIZER WEIGHTS MODEL_FOLDER [checkpointing]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.table import Goal, Row

if TYPE_CHECKING:
    from fullft_assets.workloads.recipe import Recipe

REPOSITORY = Path(__file__).parent.parent
#: (optimizer, weights): the first is what the others are compared with.
RUNGS = (
    ("adamw", "fp32"),
    ("adamw_8bit", "fp32"),
    ("adamw_in_backward", "fp32"),
    ("adafactor", "fp32"),
    ("adamw", "bf16"),
    ("adamw_in_backward", "bf16"),
    ("adafactor_in_backward", "fp32"),
    ("lomo", "fp32"),
    ("adafactor_in_backward", "bf16"),
    ("lomo", "bf16"),
)
#: The low-memory mode.
LOWEST = ("adafactor_in_backward", "bf16")
#: Most that it may take of fp32 AdamW's peak.
GOAL = 0.30
NUM_STEPS = 6
_ROWS, _CAPACITY, _VOCABULARY = 4, 32, 4_096
#: Rates that each kind of optimizer learns at.
RATES = {"lomo": 0.3}


@dataclass(frozen=True)
class MemoryRow(Row):
    """A row in bytes."""

    def cells(self) -> tuple[str, ...]:
        """Return the printed cells."""
        name, _, other, _, *rest = super().cells()
        return (name, f"{self.ours / 2**20:.0f} MiB", other, f"{self.theirs / 2**20:.0f} MiB", *rest)

    def as_json(self) -> dict[str, Any]:
        """Return everything about the row."""
        found = super().as_json()
        return {**found, "ours_bytes": found.pop("ours_seconds"), "other_bytes": found.pop("other_seconds")}


def measure_low_memory(folder: Path, rungs: Sequence[tuple[str, str]] = RUNGS, *, model: Path | None = None) -> MemoryRow:
    """Measure all rungs, one after the other.

    Args:
        folder: where the model is written, unless one is given.
        rungs: the first one is compared with; the low-memory mode is among them.
        model: folder of another one. Default: a Llama of 34 million weights.
    """
    if model is None:
        write_model(model := folder / "model")
    found = {rung: measure(model, *rung) for rung in rungs}
    first, ours = found[rungs[0]]["bytes"], found[LOWEST]["bytes"]
    notes = [
        f"{optimizer}, {weights} weights: {one['bytes'] / 2**20:.0f} MiB, {one['bytes'] / first:.2f} of {rungs[0][0]}; "
        f"loss {one['losses'][0]:.2f} -> {one['losses'][-1]:.2f} in {len(one['losses'])} steps"
        for (optimizer, weights), one in found.items()
    ]
    details = {"rungs": {" ".join(rung): one for rung, one in found.items()}}
    return MemoryRow("low_memory", ours, "AdamW, fp32", first, Goal("ratio", GOAL), notes=notes, details=details)


def measure(model: Path, optimizer: str, weights: str, *more: str) -> dict[str, Any]:
    """Return `bytes` of one rung's peak beyond its baseline, and the `losses` of its steps."""
    command = [sys.executable, "-m", "benchmarks.low_memory", optimizer, weights, str(model), *more]
    # One thread: what more of them allocate for themselves is no part of a rung.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_model(folder: Path, *, layers: int = 10, hidden: int = 512) -> None:
    """Write a Llama with random weights, in bf16 as models are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=8,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def recipe(model: Path, num_steps: int) -> Recipe:
    """Return rows of a text that repeats itself, so that there is something to learn."""
    from fullft_assets.snapshot import Split, Training, packing
    from fullft_assets.workloads.packed import NextToken

    generator = np.random.default_rng(0)
    words = generator.integers(3, _VOCABULARY, (16, 8)).tolist()
    windows = [sum((words[i] for i in generator.integers(0, 16, _CAPACITY // 8)), []) for _ in range(_ROWS * num_steps)]
    plan = packing.plan(np.array([len(window) for window in windows]), _CAPACITY, 0)
    return NextToken(model, Training(windows, None, plan), Split(["a"], [""], np.zeros(1), ["a"], [windows[:1]]))


def train(model: Path, optimizer: str, weights: str, num_steps: int = NUM_STEPS, **more: Any) -> list[float]:
    """Train as the workload does, without checkpoints; return the loss of each step."""
    from fullft_assets.settings import TrainingSettings
    from fullft_assets.workloads.entry import Progress
    from fullft_assets.workloads.finetuning import fine_tune

    settings = TrainingSettings(
        epochs=1, batch_size=_ROWS, micro_batch_size=_ROWS, learning_rate=RATES.get(optimizer, 1e-3), optimizer=optimizer, weights=weights,
        precision="auto" if weights == "bf16" else "fp32", scheduler="constant_with_warmup", track=[], **more,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        fit = fine_tune(recipe(model, num_steps), settings, 1, Path(folder), Progress(silent=True), evaluate_at=(), resumable=False)
    return [line["loss"] for line in fit.history if "loss" in line]


def _peak_bytes() -> int:
    """Return the peak of the card's allocator, or of this process's resident set.

    What getrusage says of the latter begins with that of the process that started it.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _main(optimizer: str, weights: str, model: str, *more: str) -> None:
    options = {"gradient_checkpointing": "checkpointing" in more}
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        write_model(Path(folder), layers=1, hidden=8)
        train(Path(folder), optimizer, weights, 2, **options)
    before = _peak_bytes()
    losses = train(Path(model), optimizer, weights, **options)
    print(json.dumps({"bytes": _peak_bytes() - before, "losses": losses}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
