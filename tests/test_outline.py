"""The memory of a training step counted without weights, on models that are small and real in kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import low_memory
from fullft_assets.models import documents, layers, token_loss
from fullft_assets.planning.metadata import StepMemory
from fullft_assets.planning.plan import peak_on_cpu
from fullft_assets.settings import TrainingSettings
from fullft_assets.training.measuring import Outline, Tracker, autocast
from tests.prepared import Prepared, prepare

SIZE = low_memory.TrainingSize(layers=2, hidden=64, vocabulary=512, capacity=256, num_steps=2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    """A Llama whose folder has no weights."""
    folder = tmp_path_factory.mktemp("llama")
    low_memory.write_model(folder, SIZE)
    (folder / "model.safetensors").unlink()
    return Outline(
        low_memory.recipe(folder, SIZE), TrainingSettings(batch_size=4, micro_batch_size=4), seed=1
    )


def memory(outline: Outline, **changes: object) -> StepMemory:
    settings = TrainingSettings.model_validate({"batch_size": 4, "micro_batch_size": 4, **changes})
    return outline.memory(settings, "bf16" if settings.weights == "bf16" else "fp32", is_gpu=False)


@pytest.mark.parametrize(
    ("optimizer", "weights", "gradients", "moments"),
    [
        ("adamw", "fp32", 4, 8),
        ("adamw", "bf16", 2, 4),
        ("adafactor", "fp32", 4, 0),
        ("adafactor_in_backward", "bf16", 0, 0),
    ],
)
def test_state_is_exact(llama: Outline, optimizer: str, weights: str, gradients: int, moments: int) -> None:
    step = memory(llama, optimizer=optimizer, weights=weights)
    size = llama.work().num_parameters
    assert step.weights == size * (4 if weights == "fp32" else 2) and step.gradients == size * gradients
    assert step.moments == size * moments and step.peak >= step.weights + step.moments


def test_passing_tensors_grow_with_the_pass_and_shrink_with_checkpointing_and_bf16(llama: Outline) -> None:
    full, half = memory(llama), memory(llama, micro_batch_size=2)
    assert half.activations < 0.75 * full.activations and half.state == full.state
    # Logits of one chunk: the logits, their log-softmax, and its gradient on the way.
    assert full.activations >= 2 * 4 * SIZE.capacity * SIZE.vocabulary * 4 * 0.9
    between = memory(llama, gradient_checkpointing="selective").activations
    assert between < full.activations > memory(llama, gradient_checkpointing=True).activations / 0.8
    assert (
        llama.memory(TrainingSettings(batch_size=4, micro_batch_size=4), "bf16", is_gpu=False).activations
        < full.activations
    )


def test_accumulating_passes_find_the_gradients_of_the_earlier_ones(llama: Outline) -> None:
    once, twice = memory(llama, micro_batch_size=2, batch_size=2), memory(llama, micro_batch_size=2)
    assert twice.peak > once.peak and twice.state == once.state


@pytest.mark.parametrize("hidden", [64, 256])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 1, "gradient_checkpointing": True},
        {"optimizer": "adafactor_in_backward", "weights": "bf16"},
        {"sharding": "fsdp2", "micro_batch_size": 1},
        {"sharding": "fsdp2", "micro_batch_size": 1, "gradient_checkpointing": True, "batch_size": 2},
    ],
)
def test_a_deep_model_follows_from_few_of_its_layers(
    changes: dict, hidden: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = replace(SIZE, layers=17, hidden=hidden)
    low_memory.write_model(tmp_path, deep)
    settings = TrainingSettings.model_validate({"batch_size": 4, "micro_batch_size": 4, **changes})

    def counted() -> StepMemory:
        return Outline(low_memory.recipe(tmp_path, deep), settings, seed=1).memory(
            settings, "bf16", is_gpu=True, processes=2
        )

    followed = counted()
    monkeypatch.setattr(layers, "few", lambda config: None)
    assert followed.model_dump() == pytest.approx(counted().model_dump(), rel=0.01)


def test_copies_of_the_weights_count(llama: Outline) -> None:
    one = memory(llama).weights
    assert [memory(llama, l2_sp=0.01, ewc=ewc).copies for ewc in (0, 0.01)] == [one, 2 * one]
    plain, pulled = (
        llama.memory(
            TrainingSettings(batch_size=4, micro_batch_size=1, sharding="fsdp2", l2_sp=pull),
            "bf16",
            is_gpu=True,
            processes=4,
        )
        for pull in (0, 0.01)
    )
    assert pulled.copies == pulled.peak - plain.peak == pytest.approx(one / 4, rel=1e-3)


def test_an_encoder_with_padding_and_dropout_is_counted(tmp_path: Path) -> None:
    prepared: Prepared = prepare(tmp_path, tiny=True)
    outline = Outline(prepared.recipe, prepared.use_case.settings.training, seed=1)
    found, work = outline.memory(prepared.use_case.settings.training, "fp32", is_gpu=False), outline.work()
    assert found.weights == 4 * work.num_parameters and work.num_padded_tokens >= work.num_tokens > 0
    assert work.flops > 6 * work.num_tokens


@pytest.mark.parametrize(("is_gpu", "tokens"), [(False, 2**15), (True, 2**18)])
def test_chunks_of_the_loss_are_those_of_the_device(is_gpu: bool, tokens: int) -> None:
    with autocast("fp32", is_gpu=is_gpu):
        assert token_loss._tokens_of_part(torch.empty((2**10, 1))) == tokens


@pytest.mark.parametrize(
    ("size", "kind"), [(32, {"softcap": 30.0}), (64, {"sliding_window": 8}), (16, {"seq_idx": True})]
)
def test_kernels_of_a_gpu_keep_no_scores_and_no_key_twice(size: int, kind: dict[str, Any]) -> None:
    """Neither do they keep a mask, where scores are capped or tokens attend to some alone."""
    with FakeTensorMode(), autocast("bf16", is_gpu=True), Tracker() as tracker:
        query, key, value, sinks = (
            torch.empty(*shape, requires_grad=True)
            for shape in ((1, 8, 4096, 32), (1, 2, 4096, 32), (1, 2, 4096, size), (8,))
        )
        found, _ = documents.attend(torch.nn.Module(), query, key, value, None, s_aux=sinks, **kind)
        found.sum().backward()
    assert tracker.peak < 5.5 * max(1, size / 32) * query.nbytes and found.shape == (1, 4096, 8, size)
    assert all(each.grad.shape == each.shape for each in (query, key, value, sinks))


@pytest.mark.parametrize(("is_gpu", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_layer_norms_are_computed_in_fp32_where_a_gpu_would(is_gpu: bool, dtype: torch.dtype) -> None:
    with autocast("bf16", is_gpu=is_gpu):
        assert torch.nn.functional.layer_norm(torch.ones(1, 4, dtype=torch.bfloat16), (4,)).dtype == dtype


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("scale", "optimizer", "weights", "ways"),
    [
        (low_memory.STATE, "adamw", "fp32", ()),
        (low_memory.ACTIVATIONS, "adafactor_in_backward", "bf16", ("activations", "checkpointing")),
    ],
)
def test_a_cpu_process_takes_about_what_was_counted(
    tmp_path: Path, scale: low_memory.TrainingSize, optimizer: str, weights: str, ways: tuple[str, ...]
) -> None:
    """The process is one of its own, which trains with the libraries loaded."""
    low_memory.write_model(tmp_path, scale)
    measured = low_memory.measure(tmp_path, optimizer, weights, *ways)
    settings = TrainingSettings.model_validate(
        {
            "batch_size": 4,
            "micro_batch_size": 4,
            "optimizer": optimizer,
            "weights": weights,
            "gradient_checkpointing": "checkpointing" in ways,
        }
    )
    outline = Outline(low_memory.recipe(tmp_path, scale), settings, seed=1)
    step = outline.memory(settings, "bf16" if weights == "bf16" else "fp32", is_gpu=False)
    peak = measured["libraries"] + measured["bytes"]
    assert 0.9 <= peak_on_cpu(step, measured["libraries"]) / peak <= 1.25
