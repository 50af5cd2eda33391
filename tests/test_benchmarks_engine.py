"""Counts of the training engine that need no GPU: how each family of models is fed, and what a step costs."""

from pathlib import Path
from typing import Any

import numpy as np
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
        numbers = np.array([result.loss, result.gradient, result.weights])
        assert name in NOT_EXACT or (numbers < [1e-6, 3e-6, 1e-3]).all(), numbers


@pytest.mark.parametrize(
    ("passes", "rung"), [*((passes, {}) for passes in (1, 2, 4)), *((2, rung) for rung in engine.RUNGS)]
)
def test_a_step_waits_for_the_device_once(passes: int, rung: dict[str, Any], tmp_path: Path) -> None:
    assert sum(engine.syncs_of_a_step(passes, tmp_path, **rung).values()) <= 1


@pytest.mark.parametrize("name", engine.VOCABULARIES)
def test_the_loss_moves_a_third_of_the_bytes_at_most(name: str) -> None:
    assert engine.moved(name).num_bytes <= 0.3 * engine.BEFORE[name]


def test_a_pass_does_the_work_of_its_weights() -> None:
    """6ND, a fifth more with recomputed activations, which are those of layers alone; N has the embeddings,
    which are looked up.
    """
    for _, recomputed, *_, share in engine.flops():
        assert float(share) == pytest.approx(1.17 if recomputed == "yes" else 0.97, abs=0.06)


def test_a_layer_of_each_kind_is_compiled_for_all_of_them() -> None:
    """For the first pass, and for any number of documents."""
    assert all(compilations in (2, 4) and breaks == 0 for _, compilations, breaks, _ in engine.graphs())


@pytest.mark.parametrize(
    ("name", "processes", "weights", "most"),
    [
        ("Llama-3.2-1B", 1, "fp32", 11.0),
        ("Llama-3.2-1B", 8, "fp32", 5.0),
        ("Llama-3.1-8B", 8, "fp32", 18.0),
        ("Llama-3.1-8B", 16, "fp32", 9.0),
        ("Qwen3-32B", 8, "fp32", 39.0),
        ("Qwen3-32B", 16, "fp32", 24.0),
        ("Llama-3.3-70B", 8, "fp32", 78.0),
        ("Llama-3.3-70B", 8, "bf16", 46.0),
        ("Llama-3.3-70B", 16, "fp32", 46.0),
    ],
)
def test_a_rank_holds_its_share(name: str, processes: int, weights: Weights, most: float) -> None:
    whole = engine.rank(name, processes, weights)
    assert whole.placed == pytest.approx(whole.weights / processes, rel=0.02)
    # One unit more: the embeddings.
    width = 4 if weights == "fp32" else 2
    unit = width * engine.MODELS[name]["vocab_size"] * engine.MODELS[name]["hidden_size"]
    assert whole.loaded <= 1.05 * whole.weights / processes + unit
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
