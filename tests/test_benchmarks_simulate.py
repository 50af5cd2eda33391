"""The simulated years: killed ticks and runs lose and double nothing."""

from benchmarks.killed_years import killed_years


def test_killed_ticks_and_runs_lose_and_double_no_retrain() -> None:
    years = killed_years(3, days=60)
    assert [(year.lost, year.doubled) for year in years] == [(0, 0)] * 3
    assert all(year.launched for year in years)
