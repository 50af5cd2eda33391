"""Training SmolLM2-135M on packed rows against the alternatives: useful tokens a second, padding not counted.

Each side is a process of its own that holds the model and trains one optimizer step over the same documents on each request.
Ours and one other take turns, also in who begins a round, so that other load of the machine affects both; each
step is compared with ours of the same round. Two at a time: all together take more than 20 GB. All have the same weights, documents,
threads, precision and optimizer:

- `padded`: transformers' Trainer, rows padded to the longest of their pass;
- `trl`: TRL's SFTTrainer with `packing_strategy="bfd_split"`, without its default of gradient checkpointing; `trl_row_by_row`:
  with passes of one row, as it puts the rows of a pass into one, whose attention costs as many times more;
- `bare`: a loop of ten lines over our packed rows with the model's own loss; `bare_same_loss`: with ours.

One side by hand: `python -m benchmarks.packed_training SIDE MODEL_FOLDER cpu`, then a line `go` for each step.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.table import Goal, Row

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fullft_assets.snapshot import Training

REPOSITORY = Path(__file__).parent.parent
#: Rows of a padded pass: Trainer's default.
NUM_PADDED_ROWS = 8
ROUNDS = 7
_SEED = 35
_OTHERS = {"padded": "Trainer, padded to longest", "trl": "TRL, bfd_split", "bare": "a bare packed loop"}
#: Minimum speed relative to the other.
_GOALS = {"padded": 2.2, "trl": 1.25, "bare": 0.97}


@dataclass(frozen=True)
class StepSize:
    """The size of an optimizer step.

    Attributes:
        capacity: tokens of a packed row, and of the longest document.
        num_rows: of a packed pass; a step is one.
        num_tokens: useful ones of a step; its rows have room for a few more.
        median_tokens: of a document.
    """

    capacity: int
    num_rows: int
    num_tokens: int
    median_tokens: int = 120


SCALES = {"cpu": StepSize(512, 4, 2_030), "gpu": StepSize(2_048, 8, 16_260, 400)}


@dataclass(frozen=True)
class PairedRow(Row):
    """A row whose ratio is the median over pairs: seconds of ours over those of the other in the same round."""

    pairs: Sequence[float] = ()

    @property
    def ratio(self) -> float:
        """Our time over theirs."""
        return median(self.pairs)


class Process:
    """One side; started, warmed up and then waiting.

    Args:
        name: the side.
        model: folder of the model.
        log: file for what it prints.
        threads: that it computes with.
        scale: name of how much it trains on.
        command: that starts it. Default: this module's, in this environment.
    """

    def __init__(self, name: str, model: Path, log: Path, threads: int, scale: str = "cpu", command: Sequence[str] | None = None):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # Passive: threads that wait must not take the cores from the side whose turn it is.
        env = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command or [sys.executable, "-m", "benchmarks.packed_training", name, str(model), scale],
                cwd=REPOSITORY, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        self._input, self._output = self._process.stdin, self._process.stdout
        self.about: dict[str, Any] = self._read()

    def step(self) -> dict[str, float]:
        """Train one step; return its `seconds`, its `cpu` seconds and what else the side counts."""
        self._input.write("go\n")
        self._input.flush()
        return self._read()

    def stop(self) -> None:
        """End it."""
        self._input.close()
        self._output.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._output.readline()
        if not line:
            raise RuntimeError(f"the process ended; the end of {self.log}:\n" + "\n".join(self.log.read_text().splitlines()[-15:]))
        return json.loads(line)


def measure_packed_training(model: Path, logs: Path, rounds: int = ROUNDS, threads: int | None = None) -> list[Row]:
    """Measure all sides, taking turns.

    Args:
        model: folder of the model; written there if it does not exist.
        logs: folder for what the sides print.
        rounds: turns of each side.
        threads: of each side. Default: one a core.
    """
    from fullft_assets.samples import smollm

    smollm.write(model)
    threads = threads or os.cpu_count() or 1
    found = {name: take_turns(name, model, logs, rounds, threads) for name in SIDES if name != "ours"}
    row_by_row, same_loss = (times_as_fast(found[side].pairs("seconds")) for side in ("trl_row_by_row", "bare_same_loss"))
    notes = {
        "padded": f"{threads} threads; load average up to {max(turns.load for turns in found.values()):.1f} (of which ours: {threads})",
        "trl": f"against TRL with one row a pass and {SCALES['cpu'].num_rows} passes a step: {row_by_row}",
        "bare": f"against the same loop with our loss: {same_loss}",
    }
    rows = [paired_row(name, found[name], _OTHERS[name], _GOALS[name]) for name in _OTHERS]
    return [replace(row, notes=[*row.notes, notes[name]]) for name, row in zip(_OTHERS, rows, strict=True)]


@dataclass(frozen=True)
class Rounds:
    """Steps of ours and of another side, round by round, what each side reports about itself, and the highest load average."""

    steps: dict[str, list[dict[str, float]]]
    about: dict[str, dict[str, Any]]
    load: float

    def pairs(self, kind: str) -> list[float]:
        """Return ours over the other's of each round: `seconds` or `cpu`."""
        ours, theirs = self.steps.values()
        return [mine[kind] / other[kind] for mine, other in zip(ours, theirs, strict=True)]


def take_turns(
    other: str, model: Path, logs: Path, rounds: int, threads: int, scale: str = "cpu", command: Sequence[str] | None = None
) -> Rounds:
    """Run steps of ours and of another side, which `command` starts, by turns; see `measure_packed_training`."""
    names = ["ours", other]
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    processes: dict[str, Process] = {}
    try:
        for name in names:
            log = logs / f"packed-training-{name}.log"
            processes[name] = Process(name, model, log, threads, scale, command if name == other else None)
        load = os.getloadavg()[0]
        for turn in range(rounds):
            for name in names[:: 1 if turn % 2 == 0 else -1]:
                steps[name].append(processes[name].step())
            load = max(load, os.getloadavg()[0])
    finally:
        for process in processes.values():
            process.stop()
    return Rounds(steps, {name: process.about for name, process in processes.items()}, load)


def paired_row(name: str, rounds: Rounds, other: str, goal: float) -> PairedRow:
    """Return the row of a side.

    Args:
        name: of the side.
        rounds: its and ours.
        other: what it is called in the table.
        goal: least times as fast as it.
    """
    seconds, cpu = ({side: median(step[kind] for step in steps) for side, steps in rounds.steps.items()} for kind in ("seconds", "cpu"))
    pairs, about = rounds.pairs("seconds"), rounds.about
    speeds = {side: about[side]["num_tokens"] / seconds[side] for side in ("ours", name)}
    notes = [
        f"{times_as_fast(pairs)}; in CPU seconds {1 / median(rounds.pairs('cpu')):.2f} times",
        f"{speeds['ours']:,.0f} against {speeds[name]:,.0f} useful tokens a second; {about['ours']['about']} against {about[name]['about']}",
    ]
    return PairedRow(
        name="packed_training" if name == "padded" else f"packed_training_{name}",
        ours=seconds["ours"],
        other=other,
        theirs=seconds[name],
        goal=Goal("ratio", 1 / goal),
        ours_cpu=cpu["ours"],
        theirs_cpu=cpu[name],
        notes=notes,
        details={"steps": rounds.steps, "about": about},
        pairs=pairs,
    )


def times_as_fast(pairs: Sequence[float]) -> str:
    """Return in words how many times as fast ours is, given its seconds over the other's, pair by pair."""
    low, high, level = median_interval([1 / pair for pair in pairs])
    return f"{1 / median(pairs):.3f} times as fast, median of {len(pairs)} pairs ({level:.0%} interval {low:.3f} to {high:.3f})"


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return an interval of the median, whatever the distribution, and its level: between the k-th smallest and the k-th largest value.

    The probability that the interval contains the median is binomial; k is the largest that reaches the level,
    or 1 where n is too small for it.
    """
    ordered, n = sorted(values), len(values)

    def reached(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max((k for k in range(1, n // 2 + 1) if reached(k) >= level), default=1)
    return ordered[k - 1], ordered[n - k], reached(k)


def documents(model: Path, scale: StepSize) -> list[list[int]]:
    """Return token ids of documents as long as those of instruction data are: lognormal, on a CPU with a median of 120 tokens.

    There, padded to the longest of eight, 57.7% of a batch is padding; of many thousands drawn so it is 57.9%. The text is that of
    the licence rules of the sample.
    """
    from tokenizers import Tokenizer

    from fullft_assets.samples import licences

    generator = np.random.default_rng(_SEED)
    lengths: list[int] = []
    while (missing := scale.num_tokens - sum(lengths)) > 0:
        lengths.append(min(missing, int(np.clip(generator.lognormal(np.log(scale.median_tokens), 0.9), 8, scale.capacity))))
    tokenizer, stream = Tokenizer.from_file(str(model / "tokenizer.json")), []
    for rule in licences.rules():
        stream += tokenizer.encode(rule["text"]).ids
        if len(stream) >= scale.num_tokens:
            break
    starts = np.cumsum([0, *lengths])
    return [stream[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]


class Turns:
    """Reports each step to the parent process, and waits for its request before the next; the first step warms up."""

    def __init__(self) -> None:
        # Output of libraries must not mix with the reports.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._began: tuple[float, float] | None = None

    def step_done(self, about: dict[str, Any], **counts: int) -> None:
        """Report the step, its times and `counts`, and wait; ends the process when the parent closes the pipe."""
        import torch

        line: dict[str, Any] = dict(about)
        has_card = torch.cuda.is_available()
        if has_card:
            torch.cuda.synchronize()  # kernels may still run
        if self._began is not None:
            line = {"seconds": time.perf_counter() - self._began[0], "cpu": time.process_time() - self._began[1], **counts}
        if has_card:
            line["peak_bytes"] = torch.cuda.max_memory_allocated()
        print(json.dumps(line), file=self._out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self._began = time.perf_counter(), time.process_time()

    def callback(self, about: Callable[[], dict[str, Any]]) -> TrainerCallback:
        """Return the callback with which a Trainer takes turns."""
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.step_done(about())

        turns = self
        return Callback()


def packed(windows: list[list[int]], scale: StepSize) -> Training:
    """Return the documents as planned rows."""
    from fullft_assets.snapshot import Training, packing

    plan = packing.plan(np.array([len(window) for window in windows]), scale.capacity, _SEED)
    assert plan.num_rows == scale.num_rows, plan.num_rows
    return Training(windows, None, plan)


def _load(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32).train()


def _arguments(folder: str, **more: Any) -> dict[str, Any]:
    import torch

    from fullft_assets.models import precision

    return {
        "output_dir": folder,
        "num_train_epochs": 1_000,
        "learning_rate": 1e-5,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": precision.resolve("auto") == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **more,
    }


def with_ours(model: Path, folder: str, turns: Turns, scale: StepSize) -> None:
    """Train as the workload does."""
    from fullft_assets.engine.finetuning import fine_tune
    from fullft_assets.jobs.progress import Progress
    from fullft_assets.settings import TrainingSettings
    from fullft_assets.snapshot import Split
    from fullft_assets.tasks.language.recipe import NextTokenRecipe

    windows = documents(model, scale)
    nothing_scored = Split(["a"], [""], np.zeros(1), ["a"], [windows[:1]])
    settings = TrainingSettings(epochs=1_000, batch_size=scale.num_rows, micro_batch_size=scale.num_rows, learning_rate=1e-5)
    about = {"num_tokens": scale.num_tokens, "about": f"{scale.num_rows} packed rows of {scale.capacity}"}
    fine_tune(
        NextTokenRecipe(model, packed(windows, scale), nothing_scored), settings, _SEED, Path(folder), Progress(silent=True),
        evaluate_at=(), resumable=False, callbacks=[turns.callback(lambda: about)],
    )  # fmt: skip


def with_padding(model: Path, folder: str, turns: Turns, scale: StepSize) -> None:
    """Train with Trainer as its examples do."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    windows = documents(model, scale)
    passes = {"per_device_train_batch_size": NUM_PADDED_ROWS, "gradient_accumulation_steps": -(-len(windows) // NUM_PADDED_ROWS)}
    trainer = Trainer(
        model=_load(model),
        args=TrainingArguments(**_arguments(folder, **passes)),
        train_dataset=Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(window) for window in windows]}),
        data_collator=DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(str(model)), mlm=False),
        callbacks=[
            turns.callback(lambda: {"num_tokens": scale.num_tokens, "about": f"{len(windows)} rows, {_padding(windows):.0%} padding"})
        ],
    )
    trainer.train()


def _padding(windows: list[list[int]]) -> float:
    """Return the share of padding that shuffled passes hold in the mean."""
    generator, sizes = np.random.default_rng(0), np.array([len(window) for window in windows])
    spent = 0
    for _ in range(1_000):
        order = sizes[generator.permutation(len(sizes))]
        spent += sum(
            int(order[i : i + NUM_PADDED_ROWS].max()) * len(order[i : i + NUM_PADDED_ROWS]) for i in range(0, len(order), NUM_PADDED_ROWS)
        )
    return 1 - 1_000 * int(sizes.sum()) / spent


def with_trl(model: Path, folder: str, turns: Turns, scale: StepSize, *, rows_a_pass: int | None = None) -> None:
    """Train with TRL, its rows as full as ours."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows_a_pass = rows_a_pass or scale.num_rows
    passes = {"per_device_train_batch_size": rows_a_pass, "gradient_accumulation_steps": scale.num_rows // rows_a_pass}
    packing = {"packing": True, "packing_strategy": "bfd_split", "max_length": scale.capacity}
    chosen = _arguments(folder, gradient_checkpointing=False, **passes, **packing)
    trainer = SFTTrainer(
        model=_load(model),
        args=SFTConfig(**chosen),
        train_dataset=Dataset.from_dict({"input_ids": documents(model, scale)}),
        processing_class=AutoTokenizer.from_pretrained(str(model)),
        callbacks=[turns.callback(lambda: about)],
    )
    packed_rows: Any = trainer.train_dataset
    rows = [sum(lengths) for lengths in packed_rows["seq_lengths"]]
    assert (len(rows), sum(rows)) == (scale.num_rows, scale.num_tokens), rows
    about = {"num_tokens": scale.num_tokens, "about": f"{len(rows)} packed rows, of which it feeds {rows_a_pass} as one"}
    trainer.train()


def with_bare_loop(model: Path, folder: str, turns: Turns, scale: StepSize, *, same_loss: bool = False) -> None:
    """Train with the least code."""
    import torch

    from fullft_assets.engine import packed_rows
    from fullft_assets.models import precision
    from fullft_assets.models.token_loss import IGNORED, TokenLoss

    network = _load(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    pieces = packed_rows.Pieces(packed(documents(model, scale), scale))
    batches = packed_rows.packed(pieces, scale.num_rows, 1_000, _SEED, 0).batches()
    first = next(packed_rows.packed(pieces, 1, 1, _SEED, 0).batches())
    loss_of = TokenLoss(network, {name: value for name, value in first.items() if name != "labels"})
    chosen = precision.resolve("auto")
    for batch in batches:
        with precision.autocast(chosen):
            if same_loss:
                labels = batch.pop("labels")
                loss = loss_of.total(network, batch, labels) / (labels != IGNORED).sum()
            else:
                loss = network(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.step_done({"num_tokens": scale.num_tokens, "about": f"{scale.num_rows} packed rows of {scale.capacity}"})


SIDES: dict[str, Callable[[Path, str, Turns, StepSize], None]] = {
    "ours": with_ours,
    "padded": with_padding,
    "trl": with_trl,
    "trl_row_by_row": lambda model, folder, turns, scale: with_trl(model, folder, turns, scale, rows_a_pass=1),
    "bare": with_bare_loop,
    "bare_same_loss": lambda model, folder, turns, scale: with_bare_loop(model, folder, turns, scale, same_loss=True),
}


def _main(side: str, model: str, scale: str) -> None:
    turns = Turns()
    with tempfile.TemporaryDirectory(prefix="fullft-bench-") as folder:
        SIDES[side](Path(model), folder, turns, SCALES[scale])


if __name__ == "__main__":
    _main(*sys.argv[1:])
