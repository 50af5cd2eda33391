"""Platforms that live through a year of texts, each under one policy: ours, or a simple one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dagster as dg
import numpy as np

from benchmarks.drift import Stream
from benchmarks.retraining_year import DAYS, HOURS_A_TICK, SHOWN_WINDOWS, START
from benchmarks.text_worlds import (
    DOCUMENTS_A_DAY,
    FIRST_ROWS,
    LABEL_DAYS,
    NO_LABEL,
    WINDOW_ROWS,
    Arrival,
    Model,
    Texts,
    TextWorld,
    draw_year,
)
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.decision import read_ledger, record
from fullft_assets.evaluation.drop import Drop, Released, num_errors_below, score_drop
from fullft_assets.evaluation.intervals import bounded_interval, effective_number
from fullft_assets.monitoring import ALARMED, Scale, live
from fullft_assets.retraining import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Attempt,
    Decision,
    Signals,
    State,
    Window,
    decide,
    drift_began,
    drift_examples,
    hours_spent,
)
from fullft_assets.retraining.policy import apply_rules
from fullft_assets.store import Store

#: Share of groups that test and never train.
TEST_SHARE = 0.2
HOURS = 3.0
#: The rules that a drift has a retrain by.
_FOR_DRIFT = {"drift", "more_of_drift"}
USUAL_ALARM = "every alarm of a usual test"
#: A retrain costs as much as so many wrong answers.
EXCHANGE_RATES = (30, 100, 300)


@dataclass(frozen=True)
class Champion:
    """A model, the rows that it was tested on, and the scale of an earlier champion on which the content of
    the texts is read.
    """

    model: Model
    test_rows: np.ndarray
    content_scale: Scale | None = None

    @cached_property
    def score(self) -> float:
        """Accuracy at release."""
        return float(self.model.is_right[self.test_rows].mean())

    @cached_property
    def at_release(self) -> Released:
        """Accuracy at release, with the lower end of its interval."""
        names = np.array(self.model.texts.corpus.groups)[self.test_rows]
        groups, sizes = np.unique(names, return_inverse=True, return_counts=True)[1:]
        # Rows of a group are right and wrong together.
        beyond = np.bincount(groups, self.model.is_right[self.test_rows] - self.score)
        error = float(np.square(beyond).sum()) ** 0.5 / len(names)
        low = bounded_interval(self.score, error, effective_number(sizes.astype(float)) - 1, 0.95, (0, 1)).low
        return Released(self.score, low, len(self.test_rows))

    @cached_property
    def scale(self) -> Scale:
        """The scale of its windows."""
        texts = self.model.texts
        fitted = Scale.fit(self.model.features_of(texts.thinned(self.test_rows)), len(texts.names))
        return fitted if self.content_scale is None else fitted.with_content_of(self.content_scale)


class TextYear:
    """A platform that lives through a year under one policy; the subclass `OurYear` asks the project's.

    Attributes:
        wrong: wrong answers of each day; answered: documents of each day that have a right answer.
        retrains: days of launched trainings, and why; num_trainings: whole trainings that they are worth, as
            a preempted one is a part of one.
        verdicts: of each window, with its day.
    """

    #: Whether windows are judged.
    is_monitored = False

    def __init__(self, texts: Texts, world: TextWorld, seed: int, first: np.ndarray, arrivals: list[Arrival]):
        self.texts, self.world, self.arrivals = texts, world, arrivals
        self.rng = np.random.default_rng(seed)
        groups = np.unique(texts.corpus.groups, return_inverse=True)[1]
        is_test = self.rng.random(groups.max() + 1) < TEST_SHARE
        self.tests = is_test[groups]
        self.labelled = set(first.tolist())
        self.wrong, self.answered = np.zeros(DAYS), np.zeros(DAYS)
        self.retrains: list[tuple[int, str]] = []
        self.num_trainings = 0.0
        self.begun: dict[int, float] = {}
        self.verdicts: list[tuple[int, str]] = []
        self.waiting: list[tuple[int, int]] = []
        self.stream = Stream()
        self.champion = self.train(-1)
        self.release(self.champion)
        self.reference_at_shift = 0

    def run(self) -> TextYear:
        """Live the year and return itself."""
        for day, arrival in enumerate(self.arrivals):
            has_answer = self.texts.labels[arrival.rows] != NO_LABEL
            self.answered[day] = has_answer.sum()
            if day == self.world.shift:
                self.reference_at_shift = len(self.stream.content.reference)
            self.wrong[day] = (has_answer & ~self.champion.model.is_right[arrival.rows]).sum()
            self.arrive(day, arrival)
            if day not in self.world.outage:
                self.morning(day)
        return self

    def arrive(self, day: int, arrival: Arrival) -> None:
        """Take in the documents and the labels of a day."""
        self.waiting += zip(arrival.rows.tolist(), arrival.labelled_on.tolist(), strict=True)
        for earlier in self.arrivals[max(0, day - LABEL_DAYS[1]) : day]:
            self.labelled.update(earlier.rows[earlier.labelled_on == day].tolist())

    def morning(self, day: int) -> None:
        """Judge the windows that are complete, and act."""
        while len(self.waiting) >= WINDOW_ROWS:
            window, self.waiting = self.waiting[:WINDOW_ROWS], self.waiting[WINDOW_ROWS:]
            status = self.judge(np.array([row for row, _ in window])) if self.is_monitored else "not judged"
            self.verdicts.append((day, status))
            self.after_window(day, status, window)

    def after_window(self, day: int, status: str, window: list[tuple[int, int]]) -> None:
        """Act on the verdict on a window of rows, each with the day on which its label comes."""

    def judge(self, rows: np.ndarray) -> str:
        """Return the verdict on a window."""
        return self.stream.send(
            self.champion.scale.sums(self.champion.model.features_of(self.texts.thinned(rows)))
        ).status

    def train(self, day: int) -> Champion:
        """Return a candidate of all labelled rows."""
        rows = np.array(sorted(self.labelled))
        train, test = rows[~self.tests[rows]], rows[self.tests[rows]]
        labels = self.texts.labels[train]
        model = self.texts.train(train, self.rng.permutation(labels) if day in self.world.broken else labels)
        return Champion(model, test)

    def gain(self, candidate: Champion) -> tuple[float, float]:
        """Return what a candidate gains over the champion on the test rows, and the standard error of
        that.
        """
        rows = candidate.test_rows
        gains = candidate.model.is_right[rows].astype(float) - self.champion.model.is_right[rows]
        return float(gains.mean()), max(float(gains.std(ddof=1)) / len(gains) ** 0.5, 1e-9)

    def release(self, champion: Champion) -> None:
        """Put a model to use."""
        if self.is_monitored:
            self.stream.release(self.champion.scale)
            champion = replace(champion, content_scale=self.stream.scale)
        self.champion = champion

    def retrain(self, day: int, why: str) -> str:
        """Train, and return what came of it.

        A training that was preempted goes on from its checkpoint, if nothing new came to learn from: another
        snapshot is another training.
        """
        self.retrains.append((day, why))
        done = self.begun.get(len(self.labelled), 0.0)
        if self.rng.random() < self.world.preempted:
            reached = self.rng.uniform(done, 1)
            self.num_trainings += reached - done
            self.begun = {len(self.labelled): reached}
            return "preemption"
        self.num_trainings += 1 - done
        candidate = self.train(day)
        gain, error = self.gain(candidate)
        # Not worse by the least difference that the test rows can show.
        if gain - 1.96 * error <= -(1.96 + 0.84) * error:
            return "rejected"
        self.release(candidate)
        return "promoted"


class SimpleYear(TextYear):
    """A simple policy: what is preempted is tried again at once, as a scheduler does it."""

    def retrain(self, day: int, why: str) -> str:
        """Train until nothing preempts it, and return what came of it."""
        while (outcome := super().retrain(day, why)) == "preemption":
            pass
        return outcome


class EveryNth(SimpleYear):
    """Retrains after each so many windows."""

    period = 4

    def after_window(self, day: int, status: str, window: list[tuple[int, int]]) -> None:
        """Retrain if it is time to."""
        if len(self.verdicts) % self.period == 0:
            self.retrain(day, "it is time")


class Monthly(SimpleYear):
    """Retrains every 30 days."""

    def morning(self, day: int) -> None:
        """Retrain if it is time to."""
        super().morning(day)
        if day % 30 == 29:
            self.retrain(day, "it is time")


class EveryAlarm(SimpleYear):
    """Retrains on each window that alarms."""

    is_monitored = True

    def after_window(self, day: int, status: str, window: list[tuple[int, int]]) -> None:
        """Retrain on an alarm."""
        if status in ALARMED:
            self.retrain(day, "alarm")


class EveryDocumentAlarm(EveryAlarm):
    """Retrains on each window whose documents differ from the test rows: what a usual test of documents calls
    drift.

    Kolmogorov-Smirnov tests of each coordinate, p <= .05 by Bonferroni (Rabanser and others 2019, "Failing
    loudly").
    """

    def judge(self, rows: np.ndarray) -> str:
        """Return the verdict on a window."""
        from scipy.stats import ks_2samp

        model, scale = self.champion.model, self.champion.scale
        sides = [scale.coordinates(model.features_of(side)) for side in (rows, self.champion.test_rows)]
        new, known = (np.concatenate([side["embeddings"], side["text_statistics"]], axis=1) for side in sides)
        # Through an untyped name: scipy's stubs do not know the argument `axis`.
        test: Any = ks_2samp
        p_values = test(new, known, axis=0, method="asymp").pvalue
        return "alarm" if p_values.min() * len(p_values) <= 0.05 else "ok"


class OurYear(TextYear):
    """Asks the project's policy every six hours, through its ledger.

    Attributes:
        num_for_drift, num_for_score: retrains for a drift, and those for a lower score, which nothing else
        called for.
    """

    is_monitored = True

    def __init__(
        self,
        *drawn: Any,
        graph: CaseGraph,
        instance: dg.DagsterInstance,
        store: Store,
        rate: int | None = None,
    ):
        super().__init__(*drawn)
        # A year has so many wrong answers in a point; a run costs its hours in dollars.
        self.usd_per_point = None if rate is None else HOURS * DAYS * DOCUMENTS_A_DAY / 100 / rate
        self.case, self.instance, self.store = graph, instance, store
        self.state = State(
            num_trained=FIRST_ROWS, trained_on=f"{FIRST_ROWS} rows", trained_at=START, champion_since=START
        )
        self.settings = graph.settings.retraining
        self.rows, self.windows = FIRST_ROWS, list[Window]()
        self.delivered: list[tuple[float, int]] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.fell, self.live_drop = Drop(0.0, 0.0), 0.0
        self.most_hours = 0.0
        self.num_for_drift = self.num_for_score = 0

    def release(self, champion: Champion) -> None:
        """Begin to count live quality anew."""
        super().release(champion)
        self.seen: set[str] = set()
        self.counts = live.Counts(0, 0, 0)
        self.pending: list[tuple[int, bool]] = []
        self.by_window: dict[str, list[tuple[int, bool]]] = {}

    def arrive(self, day: int, arrival: Arrival) -> None:
        """Note which documents count for live quality, and count labels."""
        before = len(self.labelled)
        super().arrive(day, arrival)
        self.delivered.append((START + day * DAY_SECONDS, len(self.labelled) - before))
        for row, due in zip(arrival.rows.tolist(), arrival.labelled_on.tolist(), strict=True):
            if (group := self.texts.corpus.groups[row]) not in self.seen:
                self.seen.add(group)
                if due != NO_LABEL:
                    self.pending.append((due, bool(self.champion.model.is_right[row])))

    def morning(self, day: int) -> None:
        """Judge windows, evaluate, and ask the policy every six hours."""
        super().morning(day)
        self._evaluate(day)
        for hour in range(0, 24, HOURS_A_TICK):
            self._tick(day, START + day * DAY_SECONDS + hour * HOUR_SECONDS)

    def after_window(self, day: int, status: str, window: list[tuple[int, int]]) -> None:
        """Show the policy the verdict, and note which documents count for the live quality of this window:
        one of each group.
        """
        one_a_group = {self.texts.corpus.groups[row]: (row, due) for row, due in reversed(window)}
        answers = [
            (due, bool(self.champion.model.is_right[row]))
            for row, due in one_a_group.values()
            if due != NO_LABEL
        ]
        self.by_window[f"w{len(self.windows)}"] = answers
        self.windows.append(
            Window.model_validate(
                {"key": f"w{len(self.windows)}", "status": status, "at": START + day * DAY_SECONDS}
            )
        )

    def _evaluate(self, day: int) -> None:
        """Score the champion on the newest test rows and on labelled production documents, as the evaluation
        schedule does.
        """
        rows = np.array(sorted(self.labelled))
        test = rows[self.tests[rows]]
        self.rows = len(rows)
        newest = float(self.champion.model.is_right[test].mean())
        self.fell = score_drop(self.champion.at_release, newest, len(test))
        due = [is_right for on, is_right in self.pending if on <= day]
        counts = live.Counts(len(self.seen), len(due), sum(due))
        released = self.champion.at_release
        self.live_drop = live.judge(
            counts, "champion", 1, live.AtRelease(released.score, released.low), 0.025
        ).drop

    def _tick(self, day: int, now: float) -> None:
        ledger = read_ledger(self.store, self.case.name)
        state = self.state.model_copy(update={"raised": ledger.raised})
        windows = self.windows[-SHOWN_WINDOWS:]
        began = drift_began(state, windows, now, self.settings)
        since = {
            window.key for window in windows if began is None or window.at >= began
        } & self.by_window.keys()
        answers = [is_right for key in since for due, is_right in self.by_window[key] if due <= day]
        signals = Signals(
            now=now,
            month_start=START + (now - START) // (30 * DAY_SECONDS) * 30 * DAY_SECONDS,
            num_examples=self.rows,
            data_version=f"{self.rows} rows",
            windows=windows,
            is_monitored=True,
            num_labels_since_drift=(
                0 if began is None else sum(count for at, count in self.delivered if at >= began)
            ),
            score_drop=self.fell.drop,
            num_drop_errors=self.fell.num_errors,
            live_drop=self.live_drop,
            num_live_errors=num_errors_below(self.champion.at_release, sum(answers), len(answers)),
            estimated_hours=HOURS,
            hourly_usd=1.0,
            usd_per_point=self.usd_per_point,
        )
        decision = decide(state, signals, self.settings)
        record(
            self.case,
            self.instance,
            self.store,
            ledger,
            state,
            signals,
            decision,
        )
        self.decisions.append((day, decision))
        if decision.action == "retrain":
            calls = {
                rule.name for rule in apply_rules(state, signals, self.settings) if rule.action == "retrain"
            }
            self.num_for_drift += bool(calls & _FOR_DRIFT) and calls <= {*_FOR_DRIFT, "score"}
            self.num_for_score += calls == {"score"}
            before = self.num_trainings
            outcome = self.retrain(day, "; ".join(decision.reasons))
            self._book(now, decision, signals, outcome, HOURS * (self.num_trainings - before))
        self.most_hours = max(self.most_hours, hours_spent(self.state, signals))

    def _book(self, now: float, decision: Decision, signals: Signals, outcome: str, hours: float) -> None:
        failure = "preemption" if outcome == "preemption" else None
        attempt = Attempt(
            started_at=now,
            hours=hours,
            num_examples=signals.num_examples,
            evidence=decision.evidence,
            num_drift_examples=drift_examples(self.state, signals, self.settings),
            outcome="failed" if failure else "succeeded",
            failure=failure,
        )
        update: dict[str, Any] = {"attempts": [*self.state.attempts, attempt]}
        if failure is None:
            update |= {"trained_on": signals.data_version, "num_trained": self.rows, "trained_at": now}
        if outcome == "promoted":
            update["champion_since"] = now
        self.state = self.state.model_copy(update=update)

    def count(self, action: str) -> int:
        """Return how often an action was decided."""
        return sum(decision.action == action for _, decision in self.decisions)


def with_rate(rate: int) -> str:
    """Return the name of our policy where `planning.usd_per_point` makes a retrain as expensive as so many
    wrong answers.
    """
    return f"ours, with a retrain = {rate} wrong answers in its settings"


def policies(world: TextWorld) -> dict[str, Callable[..., TextYear]]:
    """Return the simple policies that live a year, by name."""
    if not world.compared:
        return {}
    periods = {
        f"every {count} windows": type(f"Every{count}", (EveryNth,), {"period": count})
        for count in (4, 8, 16, 32)
    }
    return {
        "never": TextYear,
        **periods,
        "monthly": Monthly,
        "every alarm": EveryAlarm,
        USUAL_ALARM: EveryDocumentAlarm,
    }


def live_years(
    texts: Texts,
    world: TextWorld,
    seed: int,
    graph: CaseGraph,
    instance: dg.DagsterInstance,
    new_store: Callable[[], Store],
) -> dict[str, TextYear]:
    """Return the same year under each policy."""
    drawn = (texts, world, seed, *draw_year(texts, world, seed))
    found = {name: make(*drawn).run() for name, make in policies(world).items()}
    rates = EXCHANGE_RATES if world.compared else ()

    def ours(rate: int | None) -> TextYear:
        return OurYear(*drawn, graph=graph, instance=instance, store=new_store(), rate=rate).run()

    return {"ours": ours(None), **{with_rate(rate): ours(rate) for rate in rates}, **found}
