"""Which weights of a model are trained: parameters by depth, and freezing."""

import re
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.attention.varlen
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PretrainedConfig, PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.settings import TrainingSettings

#: `encoder.layer.3.` (BERT), `h.3.` (GPT-2), `layers.3.` (Llama, ModernBERT), `block.3.`, `blocks.3.`; not
#: those of a tower for pictures or sounds.
_LAYER = re.compile(r"^(?!.*(?:vision|visual|audio))(?:.*?\.)?(?:layer|layers|h|block|blocks)\.(\d+)\.")
#: `embeddings.` (BERT), `wte.`, `wpe.` (GPT-2), `embed_tokens.` (Llama), `embed_in.` (GPT-NeoX).
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embeddings|wte|wpe|embed_tokens|embed_positions|embed_in|shared)\.")
#: Of configurations.
_EXPERTS_A_TOKEN = ("num_experts_per_tok", "top_k_experts")
_aten = torch.ops.aten
#: Operations that cost much to compute again, and whose results are no larger than hidden states.
_PRODUCTS = (
    _aten.mm.default,
    _aten.addmm.default,
    _aten._grouped_mm.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
)


def num_layers(names: Iterable[str]) -> int:
    """Return the number of transformer layers in these parameter names."""
    return 1 + max((int(match.group(1)) for name in names if (match := _LAYER.search(name))), default=-1)


def depth(name: str, layers: int) -> int:
    """Return the depth of a parameter: 0 = embeddings, 1 to `layers` = that layer, `layers` + 1 = all above
    (norm, pooler, head).
    """
    match = _LAYER.search(name)
    return (0 if _EMBEDDINGS.search(name) else layers + 1) if match is None else 1 + int(match.group(1))


def few(config: PretrainedConfig) -> tuple[int, int] | None:
    """Return two small numbers of layers from whose memory that of a deep model can be extrapolated, because
    its kinds of layers repeat. Return None if they do not repeat, or the model has few layers.
    """
    number = config.num_hidden_layers
    kinds = list(getattr(config, "layer_types", None) or [""] * number)
    step = max(2, next(size for size in range(1, number + 1) if (kinds[:size] * number)[:number] == kinds))
    shorter = next(size for size in range(4, 4 + step) if (number - size) % step == 0)
    return (shorter, shorter + step) if number > 2 * shorter + step else None


def experts_a_token(config: PretrainedConfig) -> int:
    """Return how many experts of a mixture compute a token; 1 of other models."""
    return next((number for name in _EXPERTS_A_TOKEN if (number := getattr(config, name, None))), 1)


def freeze(model: PreTrainedModel, settings: TrainingSettings) -> PreTrainedModel:
    """Freeze the weights of a model that the settings name; return the model."""
    layers = num_layers(name for name, _ in model.named_parameters())
    if settings.freeze_layers > layers:
        raise SettingsError(
            f"training.freeze_layers: {settings.freeze_layers} is more than the {layers} layers of the base"
            " model"
        )
    for name, parameter in model.named_parameters():
        if settings.freeze_layers and depth(name, layers) <= settings.freeze_layers:
            parameter.requires_grad_(False)
    return model


def recompute(model: PreTrainedModel, settings: TrainingSettings) -> None:
    """Have each layer compute its activations again in the backward pass, all of them or those between its
    products, where the settings say so.
    """
    if settings.gradient_checkpointing == "selective":
        model.activation_checkpointing_enable(
            {
                "use_reentrant": False,
                "context_fn": partial(create_selective_checkpoint_contexts, list(_PRODUCTS)),
            }
        )
    elif settings.gradient_checkpointing:
        model.activation_checkpointing_enable()


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer of a model in place; the names of its weights stay.

    Layers of one kind share one compilation for rows of one length; passes of different lengths compile once
    more, for any length. What gathers and frees a layer's weights where processes share it stays outside.
    """
    for name, module in model.named_modules():
        match = _LAYER.search(f"{name}.")
        if match is not None and match.end() == len(name) + 1:
            module.forward = torch.compile(module.forward)


def head_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the prefixes of the names of weights outside of the base model."""
    return tuple(f"{name}." for name, _ in model.named_children() if name != model.base_model_prefix)
