"""The simulated years: killed ticks and runs lose and double nothing."""

import pytest

from benchmarks.killed_years import killed_years
from fullft_assets.automation.decision import DecisionLedger


def test_killed_ticks_and_runs_lose_and_double_no_retrain() -> None:
    years = killed_years(3, days=60)
    assert [(year.lost, year.doubled) for year in years] == [(0, 0)] * 3
    assert all(year.launched for year in years)


def test_doubled_retrains_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecisionLedger, "is_of_another", lambda *_: False)
    assert sum(year.doubled for year in killed_years(3, days=60)) > 0
