"""The rows that a benchmark run prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HEADER = ("name", "ours", "instead of", "theirs", "ratio", "CPU ratio", "goal", "met")


@dataclass(frozen=True)
class Goal:
    """What a row must reach: the most that its ratio, or our own seconds, may be."""

    of: Literal["ratio", "ours"]
    most: float

    def __str__(self) -> str:
        return f"{self.of} <= {self.most:g}{' s' if self.of == 'ours' else ''}"


@dataclass(frozen=True)
class Score:
    """What a row must reach beside its time: a share, and the least that it may be."""

    name: str
    value: float
    least: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.3f} >= {self.least:g}"


@dataclass(frozen=True)
class Row:
    """One measurement side by side, in seconds; `notes` are printed below it and `details` only written."""

    name: str
    ours: float
    other: str
    theirs: float
    goal: Goal
    ours_cpu: float | None = None
    theirs_cpu: float | None = None
    notes: Sequence[str] = ()
    details: dict[str, Any] = field(default_factory=dict)
    scores: Sequence[Score] = ()

    @property
    def ratio(self) -> float:
        """Our wall time over theirs."""
        return self.ours / self.theirs

    @property
    def cpu_ratio(self) -> float | None:
        """Our CPU time over theirs, where both were measured."""
        return None if self.ours_cpu is None or self.theirs_cpu is None else self.ours_cpu / self.theirs_cpu

    @property
    def met(self) -> bool:
        """Whether the goal is reached, and each score."""
        is_fast = (self.ratio if self.goal.of == "ratio" else self.ours) <= self.goal.most
        return is_fast and all(score.value >= score.least for score in self.scores)

    @property
    def goals(self) -> str:
        """The goal, and each score with the least that it may be."""
        return ", ".join(map(str, (self.goal, *self.scores)))

    def cells(self) -> tuple[str, ...]:
        """Return the printed cells, in the order of `HEADER`."""
        cpu = "" if self.cpu_ratio is None else f"{self.cpu_ratio:.2f}"
        met = "yes" if self.met else "NO"
        return (
            self.name,
            _seconds(self.ours),
            self.other,
            _seconds(self.theirs),
            f"{self.ratio:.3g}",
            cpu,
            self.goals,
            met,
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything about the row."""
        return {
            "name": self.name,
            "ours_seconds": self.ours,
            "other": self.other,
            "other_seconds": self.theirs,
            "ratio": self.ratio,
            "ours_cpu_seconds": self.ours_cpu,
            "other_cpu_seconds": self.theirs_cpu,
            "cpu_ratio": self.cpu_ratio,
            "goal": self.goals,
            "met": self.met,
            **self.details,
        }


def render(rows: Sequence[Row]) -> str:
    """Return the table as text, a row's notes below it."""
    cells = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    shown = [lines[0], "-" * len(lines[0])]
    for line, row in zip(lines[1:], rows, strict=True):
        shown += [line, *(f"    {note}" for note in row.notes)]
    return "\n".join(shown)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the same rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.as_json() for row in rows], indent=1), encoding="utf-8")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.3f} s"
