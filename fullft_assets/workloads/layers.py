"""What of a model is trained, and how fast: parameters by depth, freezing, layer-wise rates, the pull to the start (L2-SP)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.settings import TrainingSettings

#: `encoder.layer.3.` (BERT), `h.3.` (GPT-2), `layers.3.` (Llama, ModernBERT), `block.3.`, `blocks.3.`.
_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.")
#: `embeddings.` (BERT), `wte.`, `wpe.` (GPT-2), `embed_tokens.` (Llama), `embed_in.` (GPT-NeoX).
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embeddings|wte|wpe|embed_tokens|embed_positions|embed_in|shared)\.")


def num_layers(names: Iterable[str]) -> int:
    """Return the number of transformer layers that parameter names tell of."""
    return 1 + max((int(found.group(1)) for name in names if (found := _LAYER.search(name))), default=-1)


def depth(name: str, layers: int) -> int:
    """Return how deep a parameter lies: 0 = embeddings, 1 to `layers` = that layer, `layers` + 1 = all above (norm, pooler, head)."""
    found = _LAYER.search(name)
    if found is not None:
        return 1 + int(found.group(1))
    return 0 if _EMBEDDINGS.search(name) else layers + 1


def freeze(model: PreTrainedModel, settings: TrainingSettings) -> None:
    """Switch off training of the weights that the settings freeze.

    Raises:
        SettingsError: the model has fewer layers.
    """
    layers = num_layers(name for name, _ in model.named_parameters())
    if settings.freeze_layers > layers:
        raise SettingsError(f"training.freeze_layers: {settings.freeze_layers} is more than the {layers} layers of the base model")
    frozen_below = settings.freeze_layers if settings.freeze_layers else 0 if settings.freeze == "embeddings" else -1
    for name, parameter in model.named_parameters():
        if depth(name, layers) <= frozen_below:
            parameter.requires_grad_(False)


def groups(model: nn.Module, decayed: Iterable[str], settings: TrainingSettings) -> list[dict]:
    """Return the optimizer's parameter groups, each with `lr` for its depth and its weight decay.

    The rate of a group is `learning_rate` times `layer_decay` to the number of layers between it and the head.

    Args:
        model: whose trained parameters are grouped.
        decayed: names of the parameters that weight decay applies to.
        settings: rates and decay.
    """
    decayed = set(decayed)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = num_layers(name for name, _ in model.named_parameters())
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        rate = settings.learning_rate * settings.layer_decay ** (layers + 1 - depth(name, layers))
        found.setdefault((rate, settings.weight_decay if name in decayed else 0.0), []).append(parameter)
    # By rate and decay, not by place: a model with one rate has the two groups that it has everywhere.
    return [{"params": found[key], "lr": key[0], "weight_decay": key[1]} for key in sorted(found, reverse=True)]


class Anchor:
    """The pull of L2-SP: `strength` times the distance to the pretrained weights, added to each gradient (arXiv:1802.01483, eq. 3).

    It is added after clipping, so that a large loss gradient does not drown it. A new head is not pulled.

    Args:
        model: with its pretrained weights.
        strength: factor of the distance.
        has_new_head: all outside of the base model is new.
    """

    def __init__(self, model: PreTrainedModel, strength: float, *, has_new_head: bool):
        self._strength = strength
        head = tuple(f"{name}." for name, _ in model.named_children() if has_new_head and name != model.base_model_prefix)
        self._start = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(head)
        }

    @torch.no_grad()
    def pull(self, model: nn.Module) -> None:
        """Add the pull to the gradients of a model, which may be wrapped."""
        for name, parameter in getattr(model, "module", model).named_parameters():
            start = self._start.get(name)
            if start is None or parameter.grad is None:
                continue
            if start.device != parameter.device:
                start = self._start[name] = start.to(parameter.device)
            parameter.grad.add_(parameter.detach() - start, alpha=self._strength)
