"""The simulated years: killed ticks and runs lose and double nothing, and the platform finds and learns a new
domain of real texts.
"""

import json
from pathlib import Path

import pytest

from benchmarks import simulate
from benchmarks.killed_years import killed_years


def test_killed_ticks_and_runs_lose_and_double_no_retrain() -> None:
    years = killed_years(3, days=60)
    assert [(year.lost, year.doubled) for year in years] == [(0, 0)] * 3
    assert all(year.launched for year in years)


@pytest.mark.long
def test_a_new_domain_is_found_and_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "REPOSITORY", tmp_path)
    monkeypatch.setattr(simulate, "NUM_KILLED", 1)
    simulate.main(["--only", "new domain 30%"])
    found = json.loads((tmp_path / "build" / "simulate.json").read_text())["0"]["new domain 30%"]
    wrong = {name: policy["wrong"] for name, policy in found["policies"].items()}
    assert wrong["ours"] < 0.8 * wrong["never"]
    assert 1 <= found["policies"]["ours"]["retrains"] <= 12
    printed = capsys.readouterr().out
    assert "| new domain 30%: points below retraining every 4 windows | <= 1.0 |" in printed
    assert "| retrains lost or doubled in 90 days with killed ticks and runs | 0 | 0 of " in printed
