"""Counts of the training engine that need no GPU: how each family of models is fed, and what a step costs."""

from pathlib import Path

import pytest

from benchmarks import engine
from benchmarks.engine_families import FAMILIES

pytestmark = pytest.mark.long

#: Families that are refused, or whose documents must not be mixed in a row or a batch.
REFUSED = {"qwen3-vl", "mistral3", "mistral4", "t5", "bert", "modernbert"}
NOT_EXACT = {"phi3, longrope"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_fed_exactly_or_refused_in_a_line(name: str) -> None:
    result = engine.family(name)
    assert result.feed.startswith("refused: ") == (name in REFUSED), result.feed
    if name not in REFUSED:
        assert result.feed in ("packed", "padded") and result.is_causal
        assert name in NOT_EXACT or (result.gradient < 5e-6 and result.loss < 1e-6)


@pytest.mark.parametrize(("passes", "most"), [(1, 6), (2, 10), (4, 18)])
def test_a_step_waits_for_the_device_so_many_times(passes: int, most: int, tmp_path: Path) -> None:
    assert sum(engine.syncs_of_a_step(passes, tmp_path).values()) <= most


def test_a_compiled_model_is_one_graph() -> None:
    assert all((compilations, breaks) == (1, 0) for _, compilations, breaks, _ in engine.graphs())


@pytest.mark.parametrize(("name", "most"), [("Llama-3.1-8B", 18.0), ("Llama-3.3-70B", 78.0)])
def test_a_rank_of_eight_holds_an_eighth(name: str, most: float) -> None:
    two, four = (engine.rank(name, layers, 8) for layers in (2, 4))
    whole = two.beyond(four, engine.MODELS[name]["num_hidden_layers"] - 2)
    assert whole.placed == pytest.approx(whole.loaded / 8, rel=0.02)
    assert whole.peak / 2**30 <= most
