"""The number format to compute in, by the settings and the hardware."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast

import torch
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.models.hardware import of_accelerator
from fullft_assets.settings import TrainingSettings

Precision = Literal["fp32", "bf16", "fp16"]
#: Attribute of a model: the precision that it is scored in.
_SCORED_IN = "scored_in"


def resolve(setting: str) -> Precision:
    """Return the precision to compute in.

    `auto` is bf16 where the hardware has units for it (NVIDIA from Ampere, Intel's AMX, AVX-512 BF16 of
    AMD from Zen 4), fp16 on older GPUs and fp32 on any other CPU, where bf16 would be emulated and slower.

    Raises:
        SettingsError: fp16 without a GPU.
    """
    if setting == "fp16" and not torch.accelerator.is_available():
        raise SettingsError("training.precision: fp16 needs a GPU; use auto, fp32 or bf16")
    if setting != "auto":
        return cast(Precision, setting)
    if torch.accelerator.is_available():
        is_bf16_supported = of_accelerator("is_bf16_supported")
        # CUDA alone says so of cards that only emulate it.
        emulation = {"including_emulation": False} if device_kind() == "cuda" else {}
        return "bf16" if is_bf16_supported is None or is_bf16_supported(**emulation) else "fp16"
    return "bf16" if _cpu_has_bf16_units() else "fp32"


def of(settings: TrainingSettings) -> Precision:
    """Return the precision that a training computes in; bf16 weights are used as they are."""
    return "bf16" if settings.weights == "bf16" else resolve(settings.precision)


def of_weights(settings: TrainingSettings) -> torch.dtype:
    """Return the number format of the weights."""
    return torch.bfloat16 if settings.weights == "bf16" else torch.float32


def of_scored_weights() -> torch.dtype:
    """Return the number format of the weights of a model that is scored or writes, and is not trained: the
    one that a GPU computes them in, as autocast would keep a second copy of all of them.
    """
    return (
        torch.bfloat16 if (torch.accelerator.is_available() and resolve("auto") == "bf16") else torch.float32
    )


@torch.no_grad()
def round_weights(model: PreTrainedModel, stored_in: str, *, keeps_format: bool) -> bool:
    """Round fp32 weights to the values that they have as `stored_in`, a number format, and give them this
    format unless they keep their own; return whether there are any.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(stored_in, torch.float32)
    weights = [
        weight
        for name, weight in model.named_parameters()
        if weight.dtype == torch.float32 != dtype
        # A model may need some in fp32, whatever the others have.
        and not set(name.split(".")) & set(model._keep_in_fp32_modules_strict or ())
    ]
    for weight in weights:
        weight.data = weight.to(dtype).float() if keeps_format else weight.to(dtype)
    return bool(weights)


def score_alike(model: PreTrainedModel, settings: TrainingSettings) -> PreTrainedModel:
    """Return a model that from now on is scored in the precision that its training computes in."""
    set_scoring(model, of(settings))
    return model


def set_scoring(model: PreTrainedModel, precision: Precision | None) -> None:
    """Set the precision that a model is scored in; None: that of `auto` on this machine."""
    setattr(model, _SCORED_IN, precision)


def of_scores(model: PreTrainedModel) -> Precision:
    """Return the precision that a model is scored in: that of its training while it lasts, else that of
    `auto` on this machine.
    """
    return getattr(model, _SCORED_IN, None) or resolve("auto")


def autocast(precision: Precision) -> AbstractContextManager:
    """Return the context in which forward passes run."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return nullcontext() if precision == "fp32" else torch.autocast(device_kind(), dtype=dtype)


def device_kind() -> str:
    """Return the type of device that this process computes on, such as cuda or cpu."""
    return (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type


def _cpu_has_bf16_units() -> bool:
    has_units = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    # oneDNN may be kept from using them (`ONEDNN_MAX_CPU_ISA`): bf16 is then an eighth as fast as fp32.
    return has_units and torch.ops.mkldnn._is_mkldnn_bf16_supported()
