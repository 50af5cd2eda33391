"""Counts of the training engine that need no GPU: how each family of models is fed, and what a step costs."""

from pathlib import Path

import pytest

from benchmarks import engine
from benchmarks.engine_families import FAMILIES
from fullft_assets.settings.optimizers import Weights

pytestmark = pytest.mark.long

#: Families that are refused, or whose documents must not be mixed in a row or a batch.
REFUSED = {"t5", "bert", "modernbert"}
NOT_EXACT = {"phi3, longrope"}
#: Recurrent layers without their kernels, decoders of encoder-decoders, and what must not be mixed.
PADDED = {
    *("qwen3-next", "qwen3.5, text", "qwen3.5", "qwen3.5, experts", "olmo, hybrid", "granite4, hybrid"),
    *("lfm2", "falcon-h1", "nemotron-h", "bart", "whisper", *NOT_EXACT),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_fed_exactly_or_refused_in_a_line(name: str) -> None:
    result = engine.family(name)
    assert result.feed.startswith("refused: ") == (name in REFUSED), result.feed
    if name not in REFUSED:
        assert result.feed == ("padded" if name in PADDED else "packed") and result.is_causal
        assert name in NOT_EXACT or (result.gradient < 3e-6 and result.loss < 1e-6)


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_a_step_waits_for_the_device_once(passes: int, tmp_path: Path) -> None:
    assert sum(engine.syncs_of_a_step(passes, tmp_path).values()) <= 1


def test_a_layer_of_each_kind_is_compiled_for_all_of_them() -> None:
    """For the first pass, and for any number of documents."""
    assert all(compilations in (2, 4) and breaks == 0 for _, compilations, breaks, _ in engine.graphs())


@pytest.mark.parametrize(
    ("name", "weights", "most"),
    [("Llama-3.1-8B", "fp32", 18.0), ("Llama-3.3-70B", "fp32", 78.0), ("Llama-3.3-70B", "bf16", 46.0)],
)
def test_a_rank_of_eight_holds_an_eighth(name: str, weights: Weights, most: float) -> None:
    whole = engine.rank(name, 8, weights)
    assert whole.placed == pytest.approx(whole.weights / 8, rel=0.02)
    # One unit more: the embeddings.
    width = 4 if weights == "fp32" else 2
    unit = width * engine.MODELS[name]["vocab_size"] * engine.MODELS[name]["hidden_size"]
    assert whole.loaded <= 1.05 * whole.weights / 8 + unit
    assert whole.peak / 2**30 <= most


@pytest.mark.parametrize(
    ("name", "optimizer", "weights", "moments"),
    [
        ("Llama-3.1-8B", "adamw", "fp32", 2),
        ("Qwen3-30B-A3B", "adamw", "fp32", 2),
        ("Llama-3.3-70B", "adamw", "fp32", 2),
        ("Llama-3.3-70B", "adafactor", "bf16", 0),
    ],
)
def test_a_plan_knows_what_a_rank_of_eight_holds(
    name: str, optimizer: str, weights: Weights, moments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.token_loss, "_CHUNK_ELEMENTS", {"cpu": 2**28, "gpu": 2**28})
    whole = engine.rank(name, 8, weights)
    peak = whole.peak + moments * whole.placed
    assert engine.planned(name, 8, optimizer, weights) == pytest.approx(peak, rel=0.1)
