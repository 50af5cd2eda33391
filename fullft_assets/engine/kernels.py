"""liger-kernel's fused Triton kernels in place of a model's norms, rotary positions and gated MLPs, where they are there (arXiv:2410.10989).

Its losses are left out: `token_loss` has one of its own, which knows packed rows.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from fullft_assets.engine.packed_rows import IS_REPLAYED
from fullft_assets.engine.recipe import Prepared
from fullft_assets.errors import SettingsError
from fullft_assets.models import precision
from fullft_assets.models.inference import device
from fullft_assets.models.precision import Precision
from fullft_assets.settings import TrainingSettings

#: What liger-kernel may replace, by the names of its switches. Those of a family depend on what its layers have.
FUSED = ("rms_norm", "layer_norm", "rope", "swiglu", "geglu")
#: Switches of its losses.
_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
#: Most that a logit may move, relative to the largest: sums are taken in another order, on GPUs in TF32.
_ALLOWED_DIFFERENCE: dict[Precision, float] = {"fp32": 5e-3, "tf32": 5e-3, "bf16": 5e-2, "fp16": 5e-2}
#: Tokens of the row that is looked at before and after.
_SHOWN_TOKENS = 64


class CannotLoad(Exception):
    """liger-kernel is there and does not go with the rest: training does without it."""


def why_not(model_type: str, settings: TrainingSettings) -> str:
    """Return why a model does without the kernels; an empty string where it has them."""
    if settings.liger == "off":
        return "training.liger is off"
    if not torch.cuda.is_available():
        return "liger-kernel needs a GPU"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if settings.compile:
        return "training.compile fuses for itself"
    if settings.sharding != "none":
        return "liger-kernel was not tried with training.sharding"
    try:
        return "" if model_type in families() else f"liger-kernel knows no {model_type}"
    except CannotLoad as error:
        return str(error)


def families() -> Mapping[str, Callable[..., None]]:
    """Return what replaces the layers of a family of models, by the family's `model_type`.

    Raises:
        CannotLoad: liger-kernel does not go with the other packages, or with the GPU's driver.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except Exception as error:  # whatever packages raise that were made for others; what it was is told
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CannotLoad(f"liger-kernel cannot be loaded ({reason}); install another version") from error
    return MODEL_TYPE_TO_APPLY_LIGER_FN


def switches(model_type: str) -> dict[str, bool]:
    """Return what liger-kernel is told for a family that it knows: all but its losses."""
    known = inspect.signature(families()[model_type]).parameters
    return {name: True for name in FUSED if name in known} | {name: False for name in _LOSSES if name in known}


def apply(model: PreTrainedModel, prepared: Prepared, settings: TrainingSettings) -> Prepared:
    """Have a model compute with the kernels where they are there; return its training with `kernels` in what is told of it.

    Whether the model gives the same outputs is tried, not assumed. Functions of transformers' own modules are replaced, too, and so for all
    models of the family in this process.

    Args:
        model: loaded; it is moved to the accelerator where there are kernels for it.
        prepared: its training.
        settings: of the training.

    Raises:
        SettingsError: the outputs are not the same.
    """
    name = model.config.model_type
    # Own code may call itself by a family's name and have other layers.
    reason = "the model computes by its own code" if model.is_remote_code() else why_not(name, settings)
    if reason:
        return replace(prepared, about=prepared.about | {"kernels": f"torch ({reason})"})
    told = switches(name)
    title = f"liger-kernel {importlib.metadata.version('liger-kernel')}"
    model.to(device())
    batch = prepared.feed.batch(0)
    shown = {key: value[:1, :_SHOWN_TOKENS].to(model.device) for key, value in batch.items() if key not in ("labels", IS_REPLAYED)}
    computed = precision.of(settings)
    with precision.autocast(computed):
        before = _logits(model, shown)
        apply_liger_kernel(model, told)
        after = _logits(model, shown)
    moved = ((after - before).abs().max() / before.abs().max().clamp(min=1e-30)).item()
    # Asked so that a figure that is no number fails.
    if not moved <= _ALLOWED_DIFFERENCE[computed]:
        raise SettingsError(f"training.liger: {title} moves the outputs of {name} by {moved:.1e} of the largest; set off")
    return replace(prepared, about=prepared.about | {"kernels": f"{title}: {', '.join(key for key, is_on in told.items() if is_on)}"})


@torch.no_grad()
def _logits(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    was_training = model.training
    try:
        return model.eval()(**inputs).logits.float()
    finally:
        model.train(was_training)
