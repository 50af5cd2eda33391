"""liger-kernel's fused Triton kernels in place of a model's norms, rotary positions and gated MLPs, where
available (arXiv:2410.10989).

Its losses are not used: `token_loss` has one of its own, which knows packed rows.
"""

import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from fullft_assets.errors import SettingsError
from fullft_assets.models import precision
from fullft_assets.models.inference import device, evaluating, move
from fullft_assets.settings import TrainingSettings
from fullft_assets.training.feed import first_tokens
from fullft_assets.training.recipe import Prepared

#: What liger-kernel may replace, by the names of its switches. Which of them a family has depends on its
#: layers.
FUSED = ("rms_norm", "layer_norm", "rope", "swiglu", "geglu")
#: Switches of its losses.
_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
#: Most that a logit may move, relative to the largest: sums are taken in another order.
_ALLOWED_DIFFERENCE: dict[precision.Precision, float] = {"fp32": 5e-3, "bf16": 5e-2, "fp16": 5e-2}
#: Tokens of the row on which the outputs are compared.
_COMPARED_TOKENS = 64


def why_not(model_type: str, settings: TrainingSettings) -> str:
    """Return why a model is trained without the kernels; an empty string where it has them."""
    if settings.liger == "off":
        return "training.liger is off"
    if device().type not in ("cuda", "xpu"):  # for which Triton compiles
        return "liger-kernel needs a GPU"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if settings.compile:
        return "training.compile fuses for itself"
    try:
        return "" if model_type in _families() else f"liger-kernel has no kernels for {model_type}"
    except Exception as error:  # packages that do not fit together raise all kinds; the message has which
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"liger-kernel cannot be loaded ({reason}); install another version"


def _families() -> Mapping[str, Callable[..., None]]:
    return importlib.import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN


def switches(model_type: str) -> dict[str, bool]:
    """Return liger-kernel's switches for a family of models that it knows: all kernels are on, except its
    losses.
    """
    names = inspect.signature(_families()[model_type]).parameters
    return {name: name in FUSED for name in (*FUSED, *_LOSSES) if name in names}


def apply(model: PreTrainedModel, preparation: Prepared, settings: TrainingSettings) -> Prepared:
    """Switch a model to the kernels where they are available; return its training with `kernels` in `about`.

    The outputs are compared: that they are the same is not assumed. Functions of transformers' own modules
    are replaced, too, and so for all models of the family in this process.
    """
    name = model.config.model_type
    # A model's own code may have the name of a family and other layers.
    reason = "the model computes by its own code" if model.is_remote_code() else why_not(name, settings)
    if reason:
        return replace(preparation, about=preparation.about | {"kernels": f"torch ({reason})"})
    is_on = switches(name)
    title = f"liger-kernel {importlib.metadata.version('liger-kernel')}"
    move(model)
    inputs = {
        key: value.to(model.device)
        for key, value in first_tokens(preparation.feed.batch(0), _COMPARED_TOKENS).items()
    }
    number_format = precision.of(settings)
    with evaluating(model), torch.no_grad(), precision.autocast(number_format):
        before = model(**inputs).logits.float()
        apply_liger_kernel(model, is_on)
        after = model(**inputs).logits.float()
    change = ((after - before).abs().max() / before.abs().max().clamp(min=1e-30)).item()
    # Written so that a NaN fails.
    if not change <= _ALLOWED_DIFFERENCE[number_format]:
        raise SettingsError(
            f"training.liger: {title} moves the outputs of {name} by {change:.1e} of the largest; set off"
        )
    return replace(
        preparation,
        about=preparation.about | {"kernels": f"{title}: {', '.join(filter(is_on.get, is_on))}"},
    )
