"""Peak memory of each rung of the memory ladder, relative to AdamW in fp32; of the losses, where activations
dominate; and of sharding.

Each rung is a process of its own, which trains a Llama of 34 million weights for a few steps with the
platform's engine. There are few tokens, so that weights, gradients and moments take nearly all memory. The
peak is that of the resident set, less its size after a training of a model of a few kilobytes, when all
libraries were loaded; on a GPU, that of the allocator.

One rung by hand: `python -m benchmarks.low_memory OPTIMIZER WEIGHTS MODEL_FOLDER [checkpointing]
[activations] [whole_logits] [SHARDING]`; under torchrun in several processes. `activations` wants the model
that `write_model(folder, ACTIVATIONS)` writes.
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
    from fullft_assets.training.recipe import Prepared, Recipe

REPOSITORY = Path(__file__).parent.parent
#: (optimizer, weights): the others are compared with the first one.
RUNGS = (
    ("adamw", "fp32"),
    ("adafactor", "fp32"),
    ("adamw", "bf16"),
    ("adafactor_in_backward", "fp32"),
    ("adafactor_in_backward", "bf16"),
)
#: The low-memory mode.
LOWEST = ("adafactor_in_backward", "bf16")
#: Maximum share of fp32 AdamW's peak.
GOAL = 0.30
NUM_STEPS = 6
#: Rows of a batch.
_ROWS = 4
#: Ways to compute a loss and its gradients where activations dominate, the most expensive first.
WAYS = {
    "transformers' own loss, of all logits": ("activations", "whole_logits"),
    "the loss by chunks": ("activations",),
    "the loss by chunks, gradient_checkpointing": ("activations", "checkpointing"),
}
#: Maximum share of the first one's peak that the last one may take.
GOAL_OF_WAYS = 0.50
#: Maximum memory of a process that shares the model, relative to one that holds all of it.
GOAL_OF_SHARING = 0.90


@dataclass(frozen=True)
class TrainingSize:
    """The size of a training: that of a Llama and of its batches.

    Attributes:
        capacity: tokens of a row.
    """

    layers: int
    hidden: int
    vocabulary: int
    capacity: int
    num_steps: int


#: 34 million weights and few tokens: weights, gradients and moments take nearly all memory.
STATE = TrainingSize(layers=10, hidden=512, vocabulary=4_096, capacity=32, num_steps=NUM_STEPS)
#: 19 million weights, 2,048 tokens a pass and SmolLM2's vocabulary: logits and the layers' outputs take more
#: than those.
ACTIVATIONS = TrainingSize(layers=8, hidden=256, vocabulary=49_152, capacity=512, num_steps=2)
#: Loads all libraries of a training, and takes no memory itself.
_NOTHING = TrainingSize(layers=1, hidden=8, vocabulary=4_096, capacity=32, num_steps=2)


@dataclass(frozen=True)
class BytesRow(Row):
    """A row in bytes."""

    def cells(self) -> tuple[str, ...]:
        """Return the printed cells."""
        name, _, other, _, *rest = super().cells()
        return (name, f"{self.ours / 2**20:.0f} MiB", other, f"{self.theirs / 2**20:.0f} MiB", *rest)

    def as_json(self) -> dict[str, Any]:
        """Return everything about the row."""
        found = super().as_json()
        return {**found, "ours_bytes": found.pop("ours_seconds"), "other_bytes": found.pop("other_seconds")}


def measure_low_memory(
    folder: Path, rungs: Sequence[tuple[str, str]] = RUNGS, *, model: Path | None = None
) -> BytesRow:
    """Measure all rungs, one after the other.

    Args:
        folder: where the model is written, unless one is given.
        rungs: the first one is the reference; the low-memory mode is among them.
        model: folder of another one. Default: a Llama of 34 million weights.
    """
    if model is None:
        write_model(model := folder / "model")
    found = {rung: measure(model, *rung) for rung in rungs}
    first, ours = found[rungs[0]]["bytes"], found[LOWEST]["bytes"]
    notes = [
        f"{optimizer}, {weights} weights: {one['bytes'] / 2**20:.0f} MiB, {one['bytes'] / first:.2f} of"
        f" {rungs[0][0]}; loss {one['losses'][0]:.2f} -> {one['losses'][-1]:.2f} in {len(one['losses'])}"
        " steps"
        for (optimizer, weights), one in found.items()
    ]
    details = {"rungs": {" ".join(rung): one for rung, one in found.items()}}
    return BytesRow(
        "low_memory", ours, "AdamW, fp32", first, Goal("ratio", GOAL), notes=notes, details=details
    )


def measure_activations(folder: Path) -> BytesRow:
    """Measure all ways to compute a loss, one after the other, with AdamW in fp32.

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
    return BytesRow(
        "activations",
        last["bytes"],
        next(iter(WAYS)),
        first["bytes"],
        goal,
        notes=notes,
        details={"ways": found},
    )


def measure_sharing(folder: Path) -> BytesRow:
    """Measure two processes that share a model (FSDP2), and two that each hold all of it (DDP); of both the
    larger peak counts.

    Also the last rung of the ladder (FSDP2 with offload), which takes the same memory on a CPU.

    Args:
        folder: where the model is written.
    """
    write_model(folder / "model")
    kinds = (("fsdp2",), ("fsdp2_offload",), ())
    parts, offloaded, whole = (
        measure(folder / "model", "adamw", "fp32", *more, processes=2) for more in kinds
    )
    notes = [
        f"{name}: {one['bytes'] / 2**20:.0f} MiB at its peak, {one['bytes_in_steps'] / 2**20:.0f} MiB by the"
        " last step"
        for name, one in (("FSDP2", parts), ("FSDP2 with offload", offloaded), ("DDP", whole))
    ]
    details = {"fsdp2": parts, "fsdp2_offload": offloaded, "ddp": whole}
    return BytesRow(
        "sharing",
        parts["bytes"],
        "DDP",
        whole["bytes"],
        Goal("ratio", GOAL_OF_SHARING),
        notes=notes,
        details=details,
    )


def measure(model: Path, optimizer: str, weights: str, *more: str, processes: int = 1) -> dict[str, Any]:
    """Return `bytes` of one rung's peak beyond its baseline, those `bytes_in_steps` alone, those of the
    `libraries`, which are the baseline, and the `losses` of its steps.

    Of several processes the one with the largest peak counts.
    """
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else []
    )
    command = [
        sys.executable,
        *torchrun,
        "-m",
        "benchmarks.low_memory",
        optimizer,
        weights,
        str(model),
        *more,
    ]
    # One thread: the memory of more threads is not part of a rung.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"bytes')]
    assert len(found) == processes, done.stdout
    return max(found, key=lambda one: one["bytes"])


def write_model(folder: Path, scale: TrainingSize = STATE) -> None:
    """Write a Llama with random weights, in bf16 as models are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.hidden,
        intermediate_size=scale.hidden * 11 // 4,
        num_hidden_layers=scale.layers,
        num_attention_heads=8,
        max_position_embeddings=2 * scale.capacity,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)


def recipe(model: Path, scale: TrainingSize = STATE, *, whole_logits: bool = False) -> Recipe:
    """Return a recipe with rows of a text that repeats itself, so that there is something to learn.

    Args:
        model: folder.
        scale: of the rows.
        whole_logits: use transformers' own loss, for which the logits of all tokens exist at the same time.
    """
    from fullft_assets.snapshot import Split, Training, packing
    from fullft_assets.tasks.language.recipe import NextTokenRecipe

    class WholeLogits(NextTokenRecipe):
        def prepare(self, model: Any, settings: Any, seed: int) -> Prepared:
            def total(model: Any, inputs: Any, labels: Any) -> Any:
                return model(**inputs, labels=labels, use_cache=False, num_items_in_batch=1).loss

            return replace(super().prepare(model, settings, seed), total_loss=total)

    generator = np.random.default_rng(0)
    words = generator.integers(3, scale.vocabulary, (16, 8)).tolist()
    chunks = [
        sum((words[i] for i in generator.integers(0, 16, scale.capacity // 8)), [])
        for _ in range(_ROWS * scale.num_steps)
    ]
    plan = packing.plan(np.array([len(chunk) for chunk in chunks]), scale.capacity, 0)
    kind = WholeLogits if whole_logits else NextTokenRecipe
    return kind(model, Training(chunks, None, plan), Split(["a"], [""], np.zeros(1), ["a"], [chunks[:1]]))


def train(
    model: Path,
    optimizer: str,
    weights: str,
    scale: TrainingSize = STATE,
    *,
    whole_logits: bool = False,
    processes: int = 1,
    **more: Any,
) -> tuple[list[float], int]:
    """Train as the workload does, without checkpoints; return the loss of each step, and the peak of this
    process by the last one.
    """
    from fullft_assets.progress import Progress
    from fullft_assets.settings import TrainingSettings
    from fullft_assets.training.finetuning import fine_tune

    peaks = []

    def measure_peak(moment: str, loop: Any) -> None:
        if moment == "step":
            peaks.append(_peak_bytes())

    rung: dict[str, Any] = {"optimizer": optimizer, "weights": weights}
    settings = TrainingSettings(
        epochs=1,
        batch_size=_ROWS,
        micro_batch_size=_ROWS // processes,
        learning_rate=1e-3,
        precision="auto" if weights == "bf16" else "fp32",
        scheduler="constant_with_warmup",
        track=[],
        **rung,
        **more,
    )
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        fit = fine_tune(
            recipe(model, scale, whole_logits=whole_logits),
            settings,
            1,
            Path(folder),
            Progress(silent=True),
            num_processes=processes,
            evaluate_at=(),
            resumable=False,
            watch=measure_peak,
        )
    return [line["loss"] for line in fit.history if "loss" in line], peaks[-1]


def _peak_bytes() -> int:
    """Return the peak of the card's allocator, or of this process's resident set.

    getrusage is not used for the latter: its peak includes that of the parent process.
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
    losses, in_steps = train(
        Path(model), optimizer, weights, ACTIVATIONS if "activations" in more else STATE, **options
    )
    line = json.dumps(
        {
            "bytes": _peak_bytes() - before,
            "bytes_in_steps": in_steps - before,
            "libraries": before,
            "losses": losses,
        }
    )
    # One write: torchrun's processes do not buffer, and print writes the end of a line by itself, in the
    # midst of another's.
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
