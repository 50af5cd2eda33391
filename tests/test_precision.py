"""TF32: which GPUs have it, and which arguments follow. No GPU is used: its capability is injected, and the
decisions are checked.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from fullft_assets.settings import TrainingSettings
from fullft_assets.training import trainer
from fullft_assets.training.trainer import training_arguments
from tests.test_isolation import build
from tests.test_packed import LLAMA, SETTINGS, fit, training

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_trainer_gets_the_precision(chosen: str, tmp_path: Path) -> None:
    sizes = {"seed": 1, "num_processes": 1, "items_a_pass": 1, "num_steps": 2, "resumable": False}
    args = training_arguments(TrainingSettings(precision=chosen), build(LLAMA), tmp_path, **sizes)
    assert (args.tf32, args.bf16, args.fp16) == (None, chosen == "bf16", False)


@pytest.mark.parametrize("has_card", [False, True])
def test_batches_are_copied_from_pinned_memory_to_a_card_alone(
    has_card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_card)

    def take(**arguments: object) -> SimpleNamespace:
        given.update(arguments)
        return SimpleNamespace(n_gpu=int(has_card))

    monkeypatch.setattr(trainer, "TrainingArguments", take)
    sizes = {"seed": 1, "num_processes": 1, "items_a_pass": 1, "num_steps": 2, "resumable": False}
    # fp16 is a card's alone.
    training_arguments(
        TrainingSettings(precision="fp16" if has_card else "fp32", gradient_checkpointing=True),
        build(LLAMA),
        tmp_path,
        **sizes,
    )
    assert given["fp16"] is has_card and given["bf16"] is False
    assert (
        given["dataloader_pin_memory"]
        is given["accelerator_config"]["non_blocking"]
        is has_card
        is not given["use_cpu"]
    )
    assert given["activation_checkpointing"] is True


def test_gradient_checkpointing_computes_each_layer_twice_in_a_pass(tmp_path: Path) -> None:
    """And the optimizer steps in one kernel."""
    counts: list[int] = []

    class Counting(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            assert optimizer.optimizer.defaults["fused"] is True

            def count(module: torch.nn.Module, inputs: object) -> None:
                counts[-1] += module.training

            model.model.layers[0].mlp.register_forward_pre_hook(count)

    for is_on in (False, True):
        counts.append(0)
        fit(
            LLAMA,
            training(8),
            SETTINGS.model_copy(update={"gradient_checkpointing": is_on}),
            tmp_path / str(is_on),
            callbacks=[Counting()],
        )
    assert counts[1] == 2 * counts[0] > 0
