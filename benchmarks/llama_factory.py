"""Training SmolLM2-135M on packed rows against LLaMA-Factory's defaults on the same short documents: useful
tokens a second.

As in `packed_training`, of which this has the documents, the turns and our side. LLaMA-Factory
(https://github.com/hiyouga/LLaMA-Factory, Apache-2.0) runs through its `run_exp` with `stage: sft` and
`finetuning_type: full`, the token ids handed over by `tokenized_path`, and what is given besides is only what
makes the steps the same: documents of a step, precision, learning rate. Its defaults stay: passes of 8 rows
as they come, padded to a multiple of 8, no packing, gradient checkpointing. What its model is fed is counted
at the model itself.

It pins versions below ours of transformers, accelerate and datasets, so it has an environment of its own,
which no install of ours makes:

    python3 -m venv FOLDER
    FOLDER/bin/pip install torch torchvision torchaudio --index-url https://download.pytorch.org/whl/cpu
    FOLDER/bin/pip install llamafactory==0.9.5
    make bench ONLY=packed_training_llamafactory LLAMAFACTORY=FOLDER

With another torch for CPUs, torchaudio of the package index does not load, as it is built for CUDA;
LLaMA-Factory imports it always and needs it for sound only. It goes without its extension: `rm
FOLDER/lib/python3*/site-packages/torchaudio/lib/*.so`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.packed_sides import NUM_PADDED_ROWS, SCALES, documents
from benchmarks.packed_training import ROUNDS
from benchmarks.table import Row
from benchmarks.turns import Rounds, Turns, paired_row, take_turns, times_as_fast

#: What each side has beside the defaults.
SIDES: dict[str, dict[str, Any]] = {
    "llamafactory": {},
    "llamafactory_no_checkpointing": {"disable_gradient_checkpointing": True},
}
#: Least times as fast as it.
_GOAL = 1.8
_PACKAGES = ("transformers", "torch", "accelerate", "datasets")


def find_python(environment: Path) -> Path:
    """Return the interpreter of an environment that has LLaMA-Factory.

    Raises:
        ValueError: it has none; one line.
    """
    python = environment.absolute() / "bin" / "python"
    if not python.is_file():
        raise ValueError(
            f"{environment} is no virtual environment: there is no bin/python; benchmarks/llama_factory.py"
            " has how to make one"
        )
    asked = [
        str(python),
        "-c",
        "import importlib.util, sys; sys.exit(importlib.util.find_spec('llamafactory') is None)",
    ]
    if subprocess.run(asked, check=False).returncode:
        raise ValueError(
            f"llamafactory is not installed in {environment}; {python} -m pip install llamafactory==0.9.5"
        )
    return python


def measure_llama_factory(
    python: Path, model: Path, logs: Path, rounds: int = ROUNDS, threads: int | None = None
) -> Row:
    """Measure it as it is by default, and without gradient checkpointing, each by turns with ours.

    Args:
        python: interpreter of its environment.
        model: folder of the model; written there if it does not exist.
        logs: folder for what the sides print.
        rounds: turns of each side.
        threads: of each side. Default: one a core.
    """
    from fullft_assets.demos import standard_library
    from fullft_assets.models import precision

    standard_library.write_model(model)
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        file = Path(folder, "documents.json")
        file.write_text(
            json.dumps(
                {"documents": documents(model, SCALES["cpu"]), "bf16": precision.resolve("auto") == "bf16"}
            )
        )
        found = {}
        for name in SIDES:
            command = [str(python), "-m", "benchmarks.llama_factory", name, str(model), str(file)]
            found[name] = take_turns(name, model, logs, rounds, threads, command=command)
    shares = {name: padding(rounds_of, name) for name, rounds_of in found.items()}
    row = paired_row("llamafactory", found["llamafactory"], "LLaMA-Factory's defaults", _GOAL)
    notes = [
        (
            f"{shares['llamafactory']:.0%} of its tokens are padding; against it without checkpointing:"
            f" {times_as_fast(found['llamafactory_no_checkpointing'].pairs('seconds'))}"
        ),
        versions(found["llamafactory"].about["llamafactory"]["versions"]),
        (
            f"{threads} threads; load average up to {max(turns.load for turns in found.values()):.1f} (of"
            f" which ours: {threads})"
        ),
    ]
    return replace(row, notes=[*row.notes, *notes])


def padding(rounds: Rounds, name: str) -> float:
    """Return the share of padding in what a side fed its model.

    Raises:
        RuntimeError: a step of it held other than the useful tokens that a step of ours holds.
    """
    expected, steps = rounds.about["ours"]["num_tokens"], rounds.steps[name]
    if wrong := [
        step["num_tokens"] for step in (rounds.about[name], *steps) if step["num_tokens"] != expected
    ]:
        raise RuntimeError(f"{name} trained on {wrong[0]:,} useful tokens in a step, ours on {expected:,}")
    return 1 - expected * len(steps) / sum(step["num_fed"] for step in steps)


def versions(theirs: dict[str, str]) -> str:
    """Say which versions the sides have."""
    both = [f"{name} {theirs[name]} (ours {version(name)})" for name in _PACKAGES]
    return f"LLaMA-Factory {theirs['llamafactory']} with what it pins: {', '.join(both)}"


def arguments(
    model: str, rows: str, folder: str, num_documents: int, *, bf16: bool, use_cpu: bool, **more: Any
) -> dict[str, Any]:
    """Return LLaMA-Factory's arguments: its defaults, but for what makes a step the same as ours.

    Args:
        model: folder of the model.
        rows: folder of the tokenised documents, a saved `datasets.DatasetDict`.
        folder: for what it writes.
        num_documents: of a step, which is an epoch.
        bf16: whether it computes in bf16, as ours does where the processor can.
        use_cpu: where there is no GPU, bf16 is refused without.
        **more: what a side has besides.
    """
    return {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": model,
        # A name is asked for, and not looked at where rows are tokenised already.
        "dataset": "documents",
        "tokenized_path": rows,
        "output_dir": folder,
        "gradient_accumulation_steps": -(-num_documents // NUM_PADDED_ROWS),
        "num_train_epochs": 1_000,
        "learning_rate": 1e-5,
        "bf16": bf16,
        "use_cpu": use_cpu,
        **more,
    }


def _main(side: str, model: str, file: str) -> None:
    # Before anything prints.
    turns = Turns()
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import TrainerCallback

    # Installed only in the environment that this side runs in.
    run_exp = import_module("llamafactory.train.tuner").run_exp
    given = json.loads(Path(file).read_text())
    chunks = given["documents"]

    class Callback(TrainerCallback):
        """Takes turns, and counts what the model is fed in a step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            self._clear()
            model.register_forward_pre_hook(self._count, with_kwargs=True)
            self._checkpointing = "with" if model.is_gradient_checkpointing else "without"

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            counts = {"num_tokens": self._num_tokens, "num_fed": self._num_fed}
            about = f"{self._num_rows} rows in {self._num_passes} passes, {self._checkpointing} checkpointing"
            installed = {name: version(name) for name in ("llamafactory", *_PACKAGES)}
            self._clear()
            turns.step_done({**counts, "about": about, "versions": installed}, **counts)

        def _clear(self) -> None:
            self._num_tokens = self._num_fed = self._num_rows = self._num_passes = 0

        def _count(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
            mask = named["attention_mask"]
            self._num_tokens += int(mask.sum())
            self._num_fed += mask.numel()
            self._num_rows += len(mask)
            self._num_passes += 1

    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        rows = str(Path(folder, "rows"))
        columns = {
            "input_ids": chunks,
            "attention_mask": [[1] * len(chunk) for chunk in chunks],
            "labels": chunks,
        }
        DatasetDict({"train": Dataset.from_dict(columns)}).save_to_disk(rows)
        same = {"bf16": given["bf16"], "use_cpu": not torch.cuda.is_available()}
        run_exp(
            arguments(model, rows, str(Path(folder, "output")), len(chunks), **same, **SIDES[side]),
            callbacks=[Callback()],
        )


if __name__ == "__main__":
    _main(*sys.argv[1:])
