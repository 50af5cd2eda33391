"""TF32: which GPUs have it, and which arguments follow. No GPU is used: its capability is injected, and the
decisions are checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback, training_args

from fullft_assets.checkpoint import key_settings
from fullft_assets.errors import SettingsError
from fullft_assets.jobs.progress import Progress
from fullft_assets.models import precision
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.training import trainer
from fullft_assets.training.finetuning import fine_tune
from fullft_assets.training.trainer import training_arguments
from fullft_assets.workloads import planning
from tests.prepared import prepare
from tests.test_isolation import build
from tests.test_packed import LLAMA, SETTINGS, fit, training

pytestmark = pytest.mark.numeric

TF32 = TrainingSettings(precision="tf32")


def have_card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cuda: str | None = "12.8"
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(
    ("capability", "cuda"), [((7, 0), "12.8"), ((7, 5), "12.8"), ((9, 4), None)], ids=["V100", "T4", "MI300X"]
)
def test_a_card_without_tf32_is_refused(
    capability: tuple[int, int], cuda: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_card(monkeypatch, capability, cuda)
    with pytest.raises(
        SettingsError,
        match=(
            r"^training\.precision: tf32 needs an NVIDIA GPU of the Ampere generation or newer; use auto or"
            r" fp32$"
        ),
    ):
        precision.resolve("tf32")


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)])
def test_a_card_from_ampere_on_has_it_and_auto_stays_bf16(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    have_card(monkeypatch, capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert precision.resolve("tf32") == precision.of(TF32) == "tf32"
    assert precision.resolve("auto") == "bf16"


@pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") != "AVX2",
    reason="oneDNN may use what this CPU has; `make test-numeric` limits it",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_auto_is_fp32_where_onednn_is_kept_from_bf16() -> None:
    assert precision.resolve("auto") == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU may have TF32")
def test_a_machine_without_it_is_refused_before_any_work(tmp_path: Path) -> None:
    case = prepare(tmp_path, tiny=True)
    job = case.job("pilot_run", training={"precision": "tf32"})
    with pytest.raises(SettingsError, match=r"training\.precision: tf32 needs an NVIDIA GPU"):
        planning.work(job, case.store, Progress(silent=True))
    with pytest.raises(SettingsError, match=r"training\.precision: tf32 needs an NVIDIA GPU"):
        fine_tune(case.recipe, job.settings.training, 17, tmp_path / "work", Progress(silent=True))
    assert not (tmp_path / "work").exists() and case.store.find(job.case, "feasibility_plan", job.key) is None


@pytest.mark.parametrize("chosen", ["tf32", "fp32", "bf16"])
def test_trainer_gets_the_tf32_argument_for_tf32_only(
    chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(training_args, "is_torch_tf32_available", lambda: True)
    monkeypatch.setattr(training_args, "enable_tf32", switched.append)
    monkeypatch.setattr(precision, "_has_tf32", lambda: True)
    sizes = {"seed": 1, "num_processes": 1, "items_a_pass": 1, "num_steps": 2, "resumable": False}
    args = training_arguments(TrainingSettings(precision=chosen), build(LLAMA), tmp_path, **sizes)
    assert switched == ([True] if chosen == "tf32" else [])
    assert (args.tf32, args.bf16, args.fp16) == (True if chosen == "tf32" else None, chosen == "bf16", False)


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


def test_the_plan_times_its_passes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(precision, "enable_tf32", switched.append)
    for chosen in ("fp32", "bf16", "fp16", "tf32"):
        precision.enable(chosen)
    assert switched == [True]
    with precision.autocast("tf32"):
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float32


def test_it_is_another_checkpoint() -> None:
    data = {"base_model": "m", "documents": {"path": "d"}, "examples": {"label": "l"}}
    of_fp32, of_tf32 = (
        key_settings(UseCaseSettings.model_validate({**data, "training": {"precision": p}}))
        for p in ("fp32", "tf32")
    )
    assert of_fp32 != of_tf32
