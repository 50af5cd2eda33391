"""A year of the retraining policy in each of a dozen worlds, without a model: `python -m
benchmarks.retraining_year`.

The real `decide` is asked every six hours; deliveries, windows, and what each training comes to are the
world's. The table has retrains, alerts and requests for labels of the year. `before` is what the policy did
until it got a backoff and counted rows of snapshots, in the worlds where that was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fullft_assets.errors import FailureClass
from fullft_assets.monitoring import Status
from fullft_assets.retraining import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Attempt,
    Decision,
    RunInFlight,
    Signals,
    State,
    Window,
    decide,
    drift_began,
    drift_examples,
    raised_after,
)
from fullft_assets.settings import RetrainingSettings

DAYS = 365
HOURS_A_TICK = 6
#: Begin of the year in seconds since the epoch; a month has 30 days here.
START = 20_000 * DAY_SECONDS
#: Windows that a decision is shown.
SHOWN_WINDOWS = 60


@dataclass(frozen=True)
class World:
    """What happens to a use case in a year; the functions get the day.

    Attributes:
        before: retrains of the policy before, where they were measured.
        delivered: valid examples that are delivered, and how many of them are new to a snapshot.
        window: status of the window of production documents; None: no window comes.
        knows: whether a model that is trained on this day knows what drifted: windows are ok from then on.
        score_drop: how far below its release the first champion scores.
        num_errors: by how many standard errors labels show that, or that a drift made the champion worse.
        outcome: what the training comes to that is launched on this day: a champion, a candidate that is not
            promoted, a failure, or nothing ("hangs").
    """

    name: str
    before: str = ""
    delivered: Callable[[int], tuple[int, int]] = lambda day: (0, 0)
    window: Callable[[int], Status | None] = lambda day: "ok"
    knows: Callable[[int], bool] = lambda day: False
    score_drop: float | None = 0.0
    num_errors: float = 0.0
    outcome: Callable[[int], str | FailureClass] = lambda day: "promoted"
    rows: int = 5_000
    is_trained: bool = True
    hours: float = 3.0
    settings: Mapping[str, Any] = field(default_factory=dict)


WORLDS = (
    World("nothing happens", before="0"),
    World("60 labels a day", delivered=lambda day: (60, 60)),
    World(
        "never a checkpoint, one new row a day",
        before="364",
        delivered=lambda day: (1, 1),
        outcome=lambda day: "unknown",
        is_trained=False,
    ),
    World(
        "score .031 below release, 100 labels a day, candidates kept",
        before="364",
        delivered=lambda day: (100, 100),
        score_drop=0.031,
        num_errors=3.0,
        outcome=lambda day: "rejected",
    ),
    World(
        "score .031 below release, 15 labels a day, candidates kept",
        before="52",
        delivered=lambda day: (15, 15),
        score_drop=0.031,
        num_errors=3.0,
        outcome=lambda day: "rejected",
    ),
    World(
        "every window drifts, 50 labels a day, promoted",
        before="182",
        delivered=lambda day: (50, 50),
        window=lambda day: "confirmed",
        num_errors=3.0,
    ),
    World(
        "every window drifts, 50 labels a day, candidates kept",
        before="182",
        delivered=lambda day: (50, 50),
        window=lambda day: "confirmed",
        num_errors=3.0,
        outcome=lambda day: "rejected",
    ),
    World(
        "every window drifts, 50 labels a day that show nothing",
        delivered=lambda day: (50, 50),
        window=lambda day: "confirmed",
    ),
    World("every window drifts, no label", before="0", window=lambda day: "confirmed"),
    World("the same 2,000 rows a day under a new name", before="364", delivered=lambda day: (2_000, 0)),
    World(
        "drift from day 60, its labels from day 70",
        delivered=lambda day: (0, 0) if 45 <= day < 70 else (60, 60),
        window=lambda day: "confirmed" if day >= 60 else "ok",
        knows=lambda day: day >= 71,
        num_errors=3.0,
    ),
    World(
        "a false confirmed window in ten, 50 labels a day",
        delivered=lambda day: (50, 50),
        window=lambda day: "ok" if day % 10 else "confirmed",
    ),
    World("each run is preempted", outcome=lambda day: "preemption", delivered=lambda day: (60, 60)),
    World(
        "the infrastructure fails each run, 60 labels a day until day 30",
        outcome=lambda day: "infrastructure",
        delivered=lambda day: (60, 60) if day < 30 else (0, 0),
    ),
    World(
        "the first run hangs, 60 labels a day", outcome=lambda day: "hangs", delivered=lambda day: (60, 60)
    ),
    World(
        "each candidate diverges, 100 labels a day",
        outcome=lambda day: "divergence",
        delivered=lambda day: (100, 100),
    ),
    World("insufficient data all year", window=lambda day: "insufficient_data"),
    World("the feed is broken all year", window=lambda day: "feed_broken"),
    World("no window all year", window=lambda day: None),
    World("a plan of 120 h, 60 labels a day", before="0", delivered=lambda day: (60, 60), hours=120.0),
    World("a plan of 60 h, 300 labels a day", delivered=lambda day: (300, 300), hours=60.0),
    World("a plan of 40 h, 3,000 labels a day", delivered=lambda day: (3_000, 3_000), hours=40.0),
)


@dataclass
class Year:
    """A year in a world: the state that follows from what happened, and what the policy decided."""

    world: World
    settings: RetrainingSettings = field(init=False)
    state: State = field(init=False)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.world
        self.settings = RetrainingSettings.model_validate(dict(world.settings))
        self.rows = world.rows
        self.uncounted = self.uncounted_new = 0
        self.deliveries: list[tuple[float, int]] = []
        trained = {
            "trained_on": f"{world.rows} rows",
            "num_trained": world.rows,
            "trained_at": START,
            "champion_since": START,
        }
        self.state = State.model_validate(trained if world.is_trained else {})
        self.first_champion = self.state.champion_since
        self.knows = False
        self.hanging: RunInFlight | None = None

    def run(self, days: int = DAYS) -> Year:
        """Let the days pass and return itself."""
        for day in range(days):
            for hour in range(0, 24, HOURS_A_TICK):
                now = START + day * DAY_SECONDS + hour * HOUR_SECONDS
                if hour == 0:
                    self._morning(day, now)
                self._tick(day, now)
        return self

    def count(self, action: str) -> int:
        """Return how often an action was decided."""
        return Counter(decision.action for _, decision in self.decisions)[action]

    def days(self, action: str) -> list[int]:
        """Return the days on which an action was decided."""
        return [
            int((at - START) // DAY_SECONDS) for at, decision in self.decisions if decision.action == action
        ]

    def signals(self, now: float) -> Signals:
        """Return what the policy is shown."""
        windows = self.windows[-SHOWN_WINDOWS:]
        began = drift_began(self.state, windows, now, self.settings)
        delivered = 0 if began is None else sum(rows for at, rows in self.deliveries if at >= began)
        drop = self.world.score_drop if self.state.champion_since == self.first_champion else 0.0
        month = START + (now - START) // (30 * DAY_SECONDS) * 30 * DAY_SECONDS
        return Signals(
            now=now,
            month_start=month,
            num_examples=self.rows,
            num_uncounted=self.uncounted,
            data_version=f"{self.rows} rows",
            windows=windows,
            is_monitored=True,
            num_labels_since_drift=delivered,
            score_drop=drop,
            num_drop_errors=self.world.num_errors if drop else 0.0,
            num_live_errors=0.0 if began is None else self.world.num_errors,
            estimated_hours=self.world.hours,
            num_runs_in_flight=0 if self.hanging is None else 1,
            oldest_run=self.hanging,
        )

    def _morning(self, day: int, now: float) -> None:
        delivered, new = self.world.delivered(day)
        if delivered:
            self.deliveries.append((now, delivered))
        self.uncounted += delivered
        self.uncounted_new += new
        status = self.world.window(day)
        if status is not None:
            shown: Status = "ok" if self.knows and status == "confirmed" else status
            self.windows.append(Window(key=f"w{day}", status=shown, at=now))

    def _tick(self, day: int, now: float) -> None:
        signals = self.signals(now)
        decision = decide(self.state, signals, self.settings)
        self.decisions.append((now, decision))
        self.state = self.state.model_copy(update={"raised": raised_after(self.state, signals, decision)})
        if decision.count_first or decision.action == "retrain":
            self.rows, self.uncounted, self.uncounted_new = self.rows + self.uncounted_new, 0, 0
        if decision.action == "retrain":
            self._train(day, now, decision, signals)

    def _train(self, day: int, now: float, decision: Decision, signals: Signals) -> None:
        outcome = self.world.outcome(day)
        hangs = outcome == "hangs"
        failed = outcome not in ("promoted", "rejected", "hangs")
        if hangs:
            self.hanging = RunInFlight(job="model", run_id=f"of-day-{day}", since=now)
        attempt = Attempt.model_validate(
            {
                "started_at": now,
                "hours": self.world.hours,
                "num_examples": signals.num_examples,
                "evidence": decision.evidence,
                "num_drift_examples": drift_examples(self.state, signals, self.settings),
                "outcome": "failed" if failed else "in_flight" if hangs else "succeeded",
                "failure": outcome if failed else None,
            }
        )
        update: dict[str, Any] = {"attempts": [*self.state.attempts, attempt]}
        if not failed and not hangs:
            update |= {"trained_on": f"{self.rows} rows", "num_trained": self.rows, "trained_at": now}
        if outcome == "promoted":
            update["champion_since"] = now
            self.knows = self.knows or self.world.knows(day)
        self.state = self.state.model_copy(update=update)


def table() -> str:
    """Return the table of all worlds, as Markdown."""
    lines = ["| world | retrains before | retrains | alerts | requests for labels |", "|---|---|---|---|---|"]
    for world in WORLDS:
        year = Year(world).run()
        counts = " | ".join(str(year.count(action)) for action in ("retrain", "alert", "request_labels"))
        lines.append(f"| {world.name} | {world.before} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
