"""Peak memory of each rung of the memory ladder, relative to AdamW in fp32; of the losses, where activations weigh; and of shared models.

Each rung is a process of its own, which trains a Llama of 34 million weights for a few steps with the platform's engine: few
tokens, so that weights, gradients and moments are nearly all that there is. Its peak is that of its resident set beyond what
it was after a training of a model of a few kilobytes, when all libraries were loaded; on a GPU, that of the allocator.

One rung by hand: `python -m benchmarks.low_memory OPTIMIZER WEIGHTS MODEL_FOLDER [checkpointing] [activations] [whole_logits] [SHARDING]`;
under torchrun in several processes. `activations` wants the model that `write_model(folder, ACTIVATIONS)` writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.table import Goal, Row

if TYPE_CHECKING:
    from fullft_assets.engine.recipe import Prepared, Recipe

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
#: Rows of a batch.
_ROWS = 4
#: Ways to a loss and its gradients where activations weigh most, from what takes most to what takes least.
WAYS = {
    "transformers' own loss, of all logits": ("activations", "whole_logits"),
    "the loss by chunks": ("activations",),
    "the loss by chunks, gradient_checkpointing": ("activations", "checkpointing"),
}
#: Most that the last one may take of the first one's peak.
GOAL_OF_WAYS = 0.50
#: Most that a process may take that shares the model, of what one takes that holds all of it.
GOAL_OF_SHARING = 0.90
#: Rates that each kind of optimizer learns at.
RATES = {"lomo": 0.3}


@dataclass(frozen=True)
class Scale:
    """What is trained: a Llama of some size, on batches of some size.

    Attributes:
        capacity: tokens of a row.
    """

    layers: int
    hidden: int
    vocabulary: int
    capacity: int
    num_steps: int


#: 34 million weights and few tokens: weights, gradients and moments are nearly all that there is.
STATE = Scale(layers=10, hidden=512, vocabulary=4_096, capacity=32, num_steps=NUM_STEPS)
#: 19 million weights, 2,048 tokens a pass and SmolLM2's vocabulary: logits and layers' outputs weigh more than those.
ACTIVATIONS = Scale(layers=8, hidden=256, vocabulary=49_152, capacity=512, num_steps=2)
#: Loads what a training needs, and weighs nothing.
_NOTHING = Scale(layers=1, hidden=8, vocabulary=4_096, capacity=32, num_steps=2)


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


def measure_activations(folder: Path) -> MemoryRow:
    """Measure all ways to a loss, one after the other, with AdamW in fp32.

    Args:
        folder: where the model is written.
    """
    write_model(folder / "model", ACTIVATIONS)
    found = {way: measure(folder / "model", "adamw", "fp32", *more) for way, more in WAYS.items()}
    first, *_, last = found.values()
    notes = [
        f"{way}: {one['bytes'] / 2**20:.0f} MiB, {one['bytes'] / first['bytes']:.2f}; loss "
        + ", ".join(f"{loss:.4f}" for loss in one["losses"])
        for way, one in found.items()
    ]
    goal = Goal("ratio", GOAL_OF_WAYS)
    return MemoryRow("activations", last["bytes"], next(iter(WAYS)), first["bytes"], goal, notes=notes, details={"ways": found})


def measure_sharing(folder: Path) -> MemoryRow:
    """Measure two processes that share a model (FSDP2), and two that each hold all of it (DDP); of both the one that takes more.

    And the last rung of the ladder (FSDP2 with offload), which takes as much where the host's memory is the only one there is.

    Args:
        folder: where the model is written.
    """
    write_model(folder / "model")
    kinds = (("fsdp2",), ("fsdp2_offload",), ())
    parts, offloaded, whole = (measure(folder / "model", "adamw", "fp32", *more, processes=2) for more in kinds)
    notes = [
        f"{name}: {one['bytes'] / 2**20:.0f} MiB at its peak, {one['bytes_in_steps'] / 2**20:.0f} MiB by the last step"
        for name, one in (("FSDP2", parts), ("FSDP2 with offload", offloaded), ("DDP", whole))
    ]
    details = {"fsdp2": parts, "fsdp2_offload": offloaded, "ddp": whole}
    return MemoryRow("sharing", parts["bytes"], "DDP", whole["bytes"], Goal("ratio", GOAL_OF_SHARING), notes=notes, details=details)


def measure(model: Path, optimizer: str, weights: str, *more: str, processes: int = 1) -> dict[str, Any]:
    """Return `bytes` of one rung's peak beyond its baseline, those `bytes_in_steps` alone, and the `losses` of its steps.

    Of several processes the one that takes most counts.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *torchrun, "-m", "benchmarks.low_memory", optimizer, weights, str(model), *more]
    # One thread: what more of them allocate for themselves is no part of a rung.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"bytes')]
    assert len(found) == processes, done.stdout
    return max(found, key=lambda one: one["bytes"])


def write_model(folder: Path, scale: Scale = STATE) -> None:
    """Write a Llama with random weights, in bf16 as models are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=scale.vocabulary, hidden_size=scale.hidden, intermediate_size=scale.hidden * 11 // 4, num_hidden_layers=scale.layers,
        num_attention_heads=8, max_position_embeddings=2 * scale.capacity, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def recipe(model: Path, scale: Scale = STATE, *, whole_logits: bool = False) -> Recipe:
    """Return rows of a text that repeats itself, so that there is something to learn.

    Args:
        model: folder.
        scale: of the rows.
        whole_logits: learn from transformers' own loss, for which the logits of all tokens exist at a time.
    """
    from fullft_assets.snapshot import Split, Training, packing
    from fullft_assets.tasks.language.recipe import NextToken

    class WholeLogits(NextToken):
        def prepare(self, *arguments: Any) -> Prepared:
            def total(model: Any, inputs: Any, labels: Any) -> Any:
                return model(**inputs, labels=labels, use_cache=False, num_items_in_batch=1).loss

            return replace(super().prepare(*arguments), total_loss=total)

    generator = np.random.default_rng(0)
    words = generator.integers(3, scale.vocabulary, (16, 8)).tolist()
    windows = [sum((words[i] for i in generator.integers(0, 16, scale.capacity // 8)), []) for _ in range(_ROWS * scale.num_steps)]
    plan = packing.plan(np.array([len(window) for window in windows]), scale.capacity, 0)
    kind = WholeLogits if whole_logits else NextToken
    return kind(model, Training(windows, None, plan), Split(["a"], [""], np.zeros(1), ["a"], [windows[:1]]))


def train(
    model: Path, optimizer: str, weights: str, scale: Scale = STATE, *, whole_logits: bool = False, processes: int = 1, **more: Any
) -> tuple[list[float], int]:
    """Train as the workload does, without checkpoints; return the loss of each step, and the peak of this process by the last one."""
    from transformers import TrainerCallback

    from fullft_assets.engine.finetuning import fine_tune
    from fullft_assets.jobs.process import Progress
    from fullft_assets.settings import TrainingSettings

    peaks = []

    class Peaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peaks.append(_peak_bytes())

    settings = TrainingSettings(
        epochs=1, batch_size=_ROWS, micro_batch_size=_ROWS // processes, learning_rate=RATES.get(optimizer, 1e-3), optimizer=optimizer, weights=weights,
        precision="auto" if weights == "bf16" else "fp32", scheduler="constant_with_warmup", track=[], **more,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        fit = fine_tune(
            recipe(model, scale, whole_logits=whole_logits), settings, 1, Path(folder), Progress(silent=True), num_processes=processes,
            evaluate_at=(), resumable=False, callbacks=[Peaks()],
        )  # fmt: skip
    return [line["loss"] for line in fit.history if "loss" in line], peaks[-1]


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
    options = {
        "gradient_checkpointing": "checkpointing" in more,
        "whole_logits": "whole_logits" in more,
        "sharding": next((kind for kind in more if kind.startswith("fsdp2")), "none"),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        write_model(Path(folder), _NOTHING)
        train(Path(folder), optimizer, weights, _NOTHING, **options)
    before = _peak_bytes()
    losses, in_steps = train(Path(model), optimizer, weights, ACTIVATIONS if "activations" in more else STATE, **options)
    line = json.dumps({"bytes": _peak_bytes() - before, "bytes_in_steps": in_steps - before, "losses": losses})
    # One write: torchrun's processes do not buffer, and print writes the end of a line by itself, in the midst of another's.
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
