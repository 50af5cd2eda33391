"""What training costs on a GPU: `python -m benchmarks.gpu`, with one card that nothing else uses.

- `gpu_training`: useful tokens a second and the share of the card's peak (MFU), packed as the workload does
  it, against TRL's SFTTrainer with `packing_strategy="bfd_split"` on the same card: a Llama of 1.2 billion
  random weights, by turns as in `packed_training`.
- `gpu_memory`: the peak of each rung of the memory ladder, as the allocator counts it.
- `gpu_resume`: a run killed by SIGKILL after a checkpoint and resumed, against one that ran through: how far
  the final weights are apart.

The results are written to benchmarks/results/, with the card and the versions. `--small` does the same with a
model that a CPU can train.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import low_memory
from benchmarks.packed_sides import SCALES, documents
from benchmarks.packed_training import ROUNDS
from benchmarks.table import Goal, Row, render
from benchmarks.turns import PairedRow, Rounds, take_turns, times_as_fast

REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "accelerate", "trl")
#: TRL's time over ours, as on a CPU.
_GOAL = 1.25
_KILLED_AFTER, _CHECKPOINT_EVERY = 4, 3
#: Maximum difference of two weights, relative to the largest: the effect of another order of a GPU's sums on
#: a few steps in bf16.
_MOST_APART = 1e-2


def measure_training(model: Path, logs: Path, *, rounds: int, scale: str) -> Row:
    """Measure tokens a second against TRL.

    Args:
        model: folder of the model.
        logs: folder for what the sides print.
        rounds: turns of each side.
        scale: name of how much a step holds, one of `SCALES`.
    """
    found = take_turns("trl", model, logs, rounds, os.cpu_count() or 1, scale)
    seconds = {side: median(step["seconds"] for step in steps) for side, steps in found.steps.items()}
    pairs = found.pairs("seconds")
    notes = [
        times_as_fast(pairs),
        *(f"{side}: {_rates(model, found, side, seconds[side], scale)}" for side in seconds),
    ]
    details = {"steps": found.steps, "about": found.about}
    return PairedRow(
        "gpu_training",
        seconds["ours"],
        "TRL, bfd_split",
        seconds["trl"],
        Goal("ratio", 1 / _GOAL),
        notes=notes,
        details=details,
        pairs=pairs,
    )


def _rates(model: Path, found: Rounds, side: str, seconds: float, scale: str) -> str:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from fullft_assets.models import precision
    from fullft_assets.models.hardware import gpu_name, peak_flops
    from fullft_assets.training.recorder import ModelShape, step_flops

    with torch.device("meta"):
        shape = ModelShape.of(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)))
    lengths = np.array([len(window) for window in documents(model, SCALES[scale])])
    flops = float(step_flops(lengths, lengths - 1, np.array([0, len(lengths)]), shape).sum()) / seconds
    peak = peak_flops(gpu_name() or "", precision.resolve("auto"))
    rates = [
        f"{SCALES[scale].num_tokens / seconds:,.0f} useful tokens a second",
        "MFU not known" if peak is None else f"MFU {flops / peak:.1%}",
    ]
    if peaks := [step["peak_bytes"] for step in found.steps[side] if "peak_bytes" in step]:
        rates.append(f"peak {max(peaks) / 2**30:.1f} GiB")
    return ", ".join(rates)


def measure_resume(model: Path, folder: Path) -> Row:
    """Kill a training after a checkpoint, resume it, and compare with one that ran through.

    Args:
        model: folder of the model.
        folder: for the work.
    """
    expected, resumed, output = folder / "straight", folder / "resumed", ""
    for arguments, status in (
        (("straight", str(expected), "0"), 0),
        (("killed", str(resumed), str(_KILLED_AFTER)), -signal.SIGKILL),
        (("resumed", str(resumed), "0"), 0),
    ):
        command = [sys.executable, "-m", "benchmarks.gpu", "train", str(model), *arguments[1:]]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode != status:
            raise RuntimeError(
                f"{arguments[0]}: exit status {done.returncode}, not {status}\n{done.stderr[-2_000:]}"
            )
        output = done.stdout
    first = json.loads(output.splitlines()[-1])["resumed_from_step"]
    apart, largest = _apart(expected, resumed)
    note = f"killed after step {_KILLED_AFTER}, resumed from step {first}; " + (
        "bit for bit the same"
        if not apart
        else f"weights apart by at most {apart:.1e}, the largest is {largest:.1e}"
    )
    if not 0 < first <= _KILLED_AFTER:
        raise RuntimeError(f"the killed run was not resumed: it began at step {first}")
    return _ApartRow("gpu_resume", apart, "run through", largest, Goal("ratio", _MOST_APART), notes=[note])


class _ApartRow(Row):
    """A row in weights."""

    def cells(self) -> tuple[str, ...]:
        name, _, other, _, *rest = super().cells()
        return (name, f"{self.ours:.2g}", other, f"{self.theirs:.2g}", *rest)


def _apart(first: Path, second: Path) -> tuple[float, float]:
    from safetensors.torch import load_file

    weights, others = (load_file(folder / "final" / "model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    apart = max(float((weights[name].float() - others[name].float()).abs().max()) for name in weights)
    return apart, max(float(value.float().abs().max()) for value in weights.values())


def _train(model: str, folder: str, kill_after: str) -> None:
    """Train a few steps with checkpoints; kill this process after a step, or write the weights to `final`."""
    from fullft_assets.progress import Progress
    from fullft_assets.settings import TrainingSettings
    from fullft_assets.training.finetuning import fine_tune

    def kill(moment: str, loop: Any) -> None:
        if moment == "step" and loop.step == int(kill_after):
            os.kill(os.getpid(), signal.SIGKILL)

    settings = TrainingSettings(
        epochs=1,
        batch_size=4,
        micro_batch_size=4,
        learning_rate=1e-3,
        checkpoint_every_steps=_CHECKPOINT_EVERY,
        keep_best=False,
        track=[],
    )
    fit = fine_tune(
        low_memory.recipe(Path(model)),
        settings,
        1,
        Path(folder),
        Progress(silent=True),
        evaluate_at=(),
        watch=kill,
    )
    fit.model.save_pretrained(Path(folder) / "final")
    print(json.dumps({"resumed_from_step": fit.resumed_from_step}))


def write_model(folder: Path) -> Path:
    """Write a Llama of 1.2 billion random weights, with the tokenizer of SmolLM2."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fullft_assets.demos import standard_library

    tokenizer = AutoTokenizer.from_pretrained(
        standard_library.write_model(folder.with_name("smollm2-135m-instruct"))
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=18,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4_096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def keep(rows: Sequence[Row], folder: Path) -> Path:
    """Write the rows with the card and the versions; return the file.

    Args:
        rows: measured.
        folder: for the file, named after the card and the day.
    """
    import torch

    from fullft_assets.models.hardware import gpu_name

    card = gpu_name() or f"{platform.machine()} CPU, {os.cpu_count()} cores"
    about = {
        "card": card,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-{about['date']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **about,
        "versions": {name: version(name) for name in _PACKAGES},
        "rows": [row.as_json() | {"notes": list(row.notes)} for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--small",
        action="store_true",
        help="a model and steps that a CPU can do: tells that it runs, not how fast",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for what was found")
    chosen = parser.parse_args(arguments)
    from fullft_assets.models.hardware import gpu_name

    if gpu_name() is None and not chosen.small:
        print("no GPU is here; `make bench` measures on a CPU, and --small tries this one", file=sys.stderr)
        return 1
    build = REPOSITORY / "build"
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as scratch:
        model = Path(scratch) / "model"
        size = {"layers": 2, "hidden": 64} if chosen.small else {"layers": 16, "hidden": 2_048}
        low_memory.write_model(model, replace(low_memory.STATE, **size))
        rungs = (low_memory.RUNGS[0], low_memory.LOWEST) if chosen.small else low_memory.RUNGS
        rows: list[Row] = [
            measure_resume(model, Path(scratch)),
            low_memory.measure_low_memory(Path(scratch), rungs, model=model),
        ]
        if not chosen.small:
            rows.append(
                measure_training(
                    write_model(build / "llama-1.2b"), build / "bench-logs", rounds=ROUNDS, scale="gpu"
                )
            )
    print(render(rows))
    print(f"written to {keep(rows, chosen.results)}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        _train(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
