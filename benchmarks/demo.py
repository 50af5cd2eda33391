"""The demo through the platform against one plain script with the same stages; and the demo run again.

Both sides read the same delivery, prepared beforehand, and the same YAML; each of our runs has a fresh home.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from benchmarks.table import Goal, Row
from benchmarks.timing import Timing, timed

REPOSITORY = Path(__file__).parents[1]
#: Our steps by stage of the plain script.
STAGES = {
    "ingest": ("raw_documents", "examples", "tokenized_chunks", "tokenizer_audit"),
    "snapshot": ("training_snapshot",),
    "planning": ("planning",),
    "training": ("finetuned_checkpoint",),
    "evaluation": ("evaluation_report",),
    "release": ("champion_model",),
    "monitoring": (
        "production_documents",
        "batch_predictions",
        "drift_report",
        "training_snapshot_training_data_represents_production",
    ),
}
WORKLOADS = ("planning", "training", "evaluation", "prediction", "monitoring")
#: Time outside all stages: our processes, Dagster and its sensors; the script's imports.
BETWEEN = "start and between"


@dataclass(frozen=True)
class Subject:
    """The use case that both sides work on, and the project that it is in."""

    name: str
    defs: Path
    root: Path

    @property
    def yaml_path(self) -> Path:
        return self.defs / self.name / "defs.yaml"


LICENCES = Subject("licences", REPOSITORY / "fullft_assets" / "defs", REPOSITORY)


@dataclass(frozen=True)
class Side:
    """One side's run: its time, the seconds of its stages, and its test scores."""

    timing: Timing
    stages: dict[str, float]
    num_rows: dict[str, int]
    accuracy: float
    macro_f1: float

    def with_rest(self) -> dict[str, float]:
        """Return the stages and the time outside them; together the whole time."""
        return {**self.stages, BETWEEN: self.timing.wall - sum(self.stages.values())}


@dataclass
class Demo:
    """Runs both sides; homes, models and reports go to a scratch folder, what they print to logs."""

    subject: Subject
    scratch: Path
    logs: Path
    num_runs: int = 0

    @cached_property
    def first(self) -> tuple[Path, Side]:
        """Our first run on a fresh home, and that home."""
        return self.run_ours()

    @cached_property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if name not in ("FULLFT_STORE", "DAGSTER_HOME")
        }
        folders = [str(Path(sys.executable).parent), kept.get("PATH", "")]
        modules = [str(self.subject.root), str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])]
        return {
            **kept,
            "PATH": os.pathsep.join(folders),
            "PYTHONPATH": os.pathsep.join(modules),
            "HF_HUB_OFFLINE": "1",
        }

    def run_ours(self) -> tuple[Path, Side]:
        """Run the whole graph on a fresh home; return the home and what it took."""
        home = self.scratch / f"home-{self._next()}"
        home.mkdir(parents=True)
        shutil.copy(REPOSITORY / "dagster.yaml", home)
        return home, self._read_ours(home, self.time_ours(home))

    def time_ours(self, home: Path) -> Timing:
        """Run the whole graph on a home."""
        command = [
            sys.executable,
            "-m",
            "fullft_assets.cli",
            "run",
            self.subject.name,
            "--defs",
            str(self.subject.defs),
        ]
        log = self.logs / f"ours-{self._next()}.log"
        _say(f"fullft run {self.subject.name} (its lines: {log}) ...")
        return timed(command, log, env={**self.environment, "DAGSTER_HOME": str(home)}, cwd=self.subject.root)

    def run_plain(self, *extra: str) -> Side:
        """Run the plain script."""
        output = self.scratch / f"plain-{self._next()}"
        log = self.logs / f"{output.name}.log"
        _say(f"the plain script (its lines: {log}) ...")
        command = [
            sys.executable,
            "-m",
            "benchmarks.plain_demo",
            "--defs",
            str(self.subject.yaml_path),
            "--output",
            str(output),
        ]
        timing = timed([*command, *extra], log, env=self.environment, cwd=self.subject.root)
        found = json.loads((output / "result.json").read_text())
        return Side(timing, found["seconds"], found["num_rows"], found["accuracy"], found["macro_f1"])

    def prepare(self) -> None:
        """Write the delivery unless it is there, so that neither side's time holds it."""
        command = [sys.executable, "-m", "fullft_assets.cli", "prepare", "--defs", str(self.subject.defs)]
        timed(command, self.logs / "prepare.log", env=self.environment, cwd=self.subject.root)

    def start_seconds(self) -> dict[str, float]:
        """Return how long each workload's process takes to start, its imports included; this also warms the
        disk cache for both sides.
        """
        modules = {workload: f"fullft_assets.launch.workloads.{workload}" for workload in WORKLOADS}

        def load(names: str) -> float:
            command = [sys.executable, "-c", f"import {names}"]
            return timed(command, self.logs / "start.log", env=self.environment, cwd=self.subject.root).wall

        load(", ".join([*modules.values(), "benchmarks.plain_demo"]))
        return {workload: load(module) for workload, module in modules.items()}

    def _next(self) -> int:
        self.num_runs += 1
        return self.num_runs

    def _read_ours(self, home: Path, timing: Timing) -> Side:
        # Imported only now: nothing is being measured.
        import dagster as dg

        from fullft_assets.checking.validation import load_use_case
        from fullft_assets.resources import latest, open_store

        with dg.DagsterInstance.from_config(str(home)) as instance:
            steps = [step for run in instance.get_runs() for step in instance.get_run_step_stats(run.run_id)]
            store = open_store(load_use_case(self.subject.yaml_path), instance)
        spans = [
            (
                step.step_key.removeprefix(f"{self.subject.name}__"),
                step.start_time or 0.0,
                step.end_time or 0.0,
            )
            for step in steps
        ]
        unknown = {name for name, _, _ in spans} - {name for names in STAGES.values() for name in names}
        assert not unknown, f"steps of no stage: {unknown}"
        stages = {
            stage: covered((began, ended) for name, began, ended in spans if name in names)
            for stage, names in STAGES.items()
        }
        snapshot, report = (
            latest(store, self.subject.name, stage) for stage in ("training_snapshot", "evaluation_report")
        )
        assert snapshot is not None and report is not None, "the demo ran to its end"
        num_rows = {
            split: snapshot.metadata[f"num_{split}_rows"] for split in ("train", "validation", "test")
        }
        return Side(timing, stages, num_rows, report.metadata["accuracy"], report.metadata["macro_f1"])


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds that at least one span covers: steps of two runs may run side by side."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def measure_demo(demo: Demo, repeats: int = 1) -> Row:
    """Measure both sides, alternating which one goes first."""
    demo.prepare()
    start = demo.start_seconds()
    ours, plain = [], []
    for number in range(repeats):
        if number % 2:
            plain.append(demo.run_plain())
        ours.append(demo.run_ours()[1] if ours else demo.first[1])
        if not number % 2:
            plain.append(demo.run_plain())
    our_stages, their_stages = _median_stages(ours), _median_stages(plain)
    sides = {"ours": ours[0], "plain script": plain[0]}
    return Row(
        name="demo",
        ours=median(side.timing.wall for side in ours),
        other="one plain script",
        theirs=median(side.timing.wall for side in plain),
        goal=Goal("ratio", 1.2),
        ours_cpu=median(side.timing.cpu for side in ours),
        theirs_cpu=median(side.timing.cpu for side in plain),
        notes=[*_stage_lines(our_stages, their_stages, start), *_same_work_lines(sides)],
        details={
            "repeats": repeats,
            "stages": {
                name: {"ours_seconds": s, "other_seconds": their_stages.get(name)}
                for name, s in our_stages.items()
            },
            "workload_start_seconds": start,
            "num_rows": {name: side.num_rows for name, side in sides.items()},
            "accuracy": {name: side.accuracy for name, side in sides.items()},
            "macro_f1": {name: side.macro_f1 for name, side in sides.items()},
        },
    )


def measure_second_run(demo: Demo) -> Row:
    """Run the demo again on the home of its first run: the work and the decision are found."""
    home, first = demo.first
    second = demo.time_ours(home)
    return Row(
        name="second_run",
        ours=second.wall,
        other="the first run",
        theirs=first.timing.wall,
        goal=Goal("ours", 60),
        ours_cpu=second.cpu,
        theirs_cpu=first.timing.cpu,
    )


def _median_stages(sides: Sequence[Side]) -> dict[str, float]:
    stages = [side.with_rest() for side in sides]
    return {name: median(found[name] for found in stages) for name in stages[0]}


def _stage_lines(ours: dict[str, float], theirs: dict[str, float], start: dict[str, float]) -> list[str]:
    lines = [f"{'stage':<18} {'ours':>8} {'plain':>8} {'rest':>8}   (seconds)"]
    for name, seconds in ours.items():
        other = theirs.get(name, 0.0)
        note = f"of it {start[name]:.1f} to start a workload's process" if name in start else ""
        lines.append(f"{name:<18} {seconds:>8.1f} {other:>8.1f} {seconds - other:>+8.1f}   {note}".rstrip())
    return lines


def _same_work_lines(sides: dict[str, Side]) -> list[str]:
    return [
        f"{name}: {', '.join(f'{count:,} {split}' for split, count in side.num_rows.items())} rows; "
        f"test accuracy {side.accuracy:.3f}, macro-F1 {side.macro_f1:.3f}"
        for name, side in sides.items()
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
