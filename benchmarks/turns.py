"""Two sides of a benchmark that take turns, each a process of its own that holds its model and trains one
step on each request.

Ours and the other take turns, also in who begins a round, so that other load of the machine affects both;
each step is compared with ours of the same round.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.table import Goal, Row

if TYPE_CHECKING:
    from transformers import TrainerCallback

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class PairedRow(Row):
    """A row whose ratio is the median over pairs: seconds of ours over those of the other in the same
    round.
    """

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

    def __init__(
        self,
        name: str,
        model: Path,
        log: Path,
        threads: int,
        scale: str = "cpu",
        command: Sequence[str] | None = None,
    ):
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
                command or [sys.executable, "-m", "benchmarks.packed_sides", name, str(model), scale],
                cwd=REPOSITORY,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
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
            raise RuntimeError(
                f"the process ended; the end of {self.log}:\n"
                + "\n".join(self.log.read_text().splitlines()[-15:])
            )
        return json.loads(line)


@dataclass(frozen=True)
class Rounds:
    """Steps of ours and of another side, round by round, what each side reports about itself, and the highest
    load average.
    """

    steps: dict[str, list[dict[str, float]]]
    about: dict[str, dict[str, Any]]
    load: float

    def pairs(self, kind: str) -> list[float]:
        """Return ours over the other's of each round: `seconds` or `cpu`."""
        ours, theirs = self.steps.values()
        return [mine[kind] / other[kind] for mine, other in zip(ours, theirs, strict=True)]


def take_turns(
    other: str,
    model: Path,
    logs: Path,
    rounds: int,
    threads: int,
    scale: str = "cpu",
    command: Sequence[str] | None = None,
) -> Rounds:
    """Run steps of ours and of another side, which `command` starts, by turns; see
    `measure_packed_training`.
    """
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
    seconds, cpu = (
        {side: median(step[kind] for step in steps) for side, steps in rounds.steps.items()}
        for kind in ("seconds", "cpu")
    )
    pairs, about = rounds.pairs("seconds"), rounds.about
    speeds = {side: about[side]["num_tokens"] / seconds[side] for side in ("ours", name)}
    notes = [
        f"{times_as_fast(pairs)}; in CPU seconds {1 / median(rounds.pairs('cpu')):.2f} times",
        (
            f"{speeds['ours']:,.0f} against {speeds[name]:,.0f} useful tokens a second;"
            f" {about['ours']['about']} against {about[name]['about']}"
        ),
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
    return (
        f"{1 / median(pairs):.3f} times as fast, median of {len(pairs)} pairs ({level:.0%} interval {low:.3f}"
        f" to {high:.3f})"
    )


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return an interval of the median, whatever the distribution, and its level: between the k-th smallest
    and the k-th largest value.

    The probability that the interval contains the median is binomial; k is the largest that reaches the
    level, or 1 where n is too small for it.
    """
    ordered, n = sorted(values), len(values)

    def reached(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = max((k for k in range(1, n // 2 + 1) if reached(k) >= level), default=1)
    return ordered[k - 1], ordered[n - k], reached(k)


class Turns:
    """Reports each step to the parent process, and waits for its request before the next; the first step
    warms up.
    """

    def __init__(self) -> None:
        # Output of libraries must not mix with the reports.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._began: tuple[float, float] | None = None

    def step_done(self, about: dict[str, Any], **counts: int) -> None:
        """Report the step, its times and `counts`, and wait; ends the process when the parent closes the
        pipe.
        """
        import torch

        line: dict[str, Any] = dict(about)
        has_card = torch.cuda.is_available()
        if has_card:
            torch.cuda.synchronize()  # kernels may still run
        if self._began is not None:
            line = {
                "seconds": time.perf_counter() - self._began[0],
                "cpu": time.process_time() - self._began[1],
                **counts,
            }
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
