"""Which weights of a model are trained, and how fast: parameters by depth, freezing, layer-wise rates, pulls
to the pretrained weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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
    """Return the number of transformer layers in these parameter names."""
    return 1 + max((int(found.group(1)) for name in names if (found := _LAYER.search(name))), default=-1)


def depth(name: str, layers: int) -> int:
    """Return the depth of a parameter: 0 = embeddings, 1 to `layers` = that layer, `layers` + 1 = all above
    (norm, pooler, head).
    """
    found = _LAYER.search(name)
    if found is not None:
        return 1 + int(found.group(1))
    return 0 if _EMBEDDINGS.search(name) else layers + 1


def freeze(model: PreTrainedModel, settings: TrainingSettings) -> None:
    """Freeze the weights that the settings name."""
    layers = num_layers(name for name, _ in model.named_parameters())
    if settings.freeze_layers > layers:
        raise SettingsError(
            f"training.freeze_layers: {settings.freeze_layers} is more than the {layers} layers of the base"
            " model"
        )
    frozen_below = settings.freeze_layers or (0 if settings.freeze == "embeddings" else -1)
    for name, parameter in model.named_parameters():
        if depth(name, layers) <= frozen_below:
            parameter.requires_grad_(False)


def compile_below_head(model: PreTrainedModel) -> None:
    """Compile a model below its head in place, for inputs of any length; the names of its weights stay.

    The head is not compiled: the loss of language models replaces it in every pass, which would compile it
    again each time.
    """
    model.base_model.compile(dynamic=True)


def groups(model: nn.Module, decayed: Iterable[str], settings: TrainingSettings) -> list[dict]:
    """Return the optimizer's parameter groups, each with `lr` for its depth and its weight decay.

    The rate of a group is `learning_rate` times `layer_decay` to the number of layers between it and the
    head.

    Args:
        decayed: names of the parameters that weight decay applies to.
    """
    decayed = set(decayed)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = num_layers(name for name, _ in model.named_parameters())
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        rate = settings.learning_rate * settings.layer_decay ** (layers + 1 - depth(name, layers))
        found.setdefault((rate, settings.weight_decay if name in decayed else 0.0), []).append(parameter)
    # Sorted by rate and decay, so that a model with one rate always has the same two groups.
    return [
        {"params": found[key], "lr": key[0], "weight_decay": key[1]} for key in sorted(found, reverse=True)
    ]


class Unfreezing:
    """Gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146): the top is trained first, and one more
    layer after each share of the steps.

    The trained weights depend on the number of the step alone. A weight that is not trained yet has no
    gradient: its optimizer state and its weight decay begin when it is unfrozen.

    Args:
        share: of the steps after which one more layer is trained.
    """

    def __init__(self, model: PreTrainedModel, share: float, num_steps: int):
        layers = num_layers(name for name, _ in model.named_parameters())
        self._depth = {
            name: depth(name, layers)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        matrices = [
            name
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and self._depth.get(name) == layers + 1
        ]
        #: With a head that is tied to the embeddings there is only a norm above the layers.
        self._top = layers + 1 if matrices else layers
        self._steps_a_layer = share * num_steps
        last = (self._top - min(self._depth.values())) * share
        if last >= 1:
            most = 1 / (self._top - min(self._depth.values()) + 1)
            raise SettingsError(
                f"training.unfreeze_share: with {share:g} the lowest weights are never trained; give at most"
                f" {most:.2g}, or set freeze_layers"
            )

    def lowest(self, step: int) -> int:
        """Return the lowest depth that is trained in the step after this one."""
        return max(0, self._top - int(step / self._steps_a_layer))

    def apply(self, model: nn.Module, step: int) -> None:
        """Set which weights are trained in the step after this one: no gradients are computed below them."""
        lowest = self.lowest(step)
        for name, parameter in model.named_parameters():
            if name in self._depth:
                parameter.requires_grad_(self._depth[name] >= lowest)

    def drop(self, model: nn.Module, step: int) -> None:
        """Drop the gradients of weights that are not trained yet: a model wrapped for several processes needs
        to compute them all.
        """
        lowest = self.lowest(step)
        for name, parameter in _unwrapped(model).named_parameters():
            if name in self._depth and self._depth[name] < lowest:
                parameter.grad = None


def head_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the prefixes of the names of weights outside of the base model."""
    return tuple(f"{name}." for name, _ in model.named_children() if name != model.base_model_prefix)


def _unwrapped(model: nn.Module) -> nn.Module:
    inner = getattr(model, "module", model)
    assert isinstance(inner, nn.Module)
    return inner


class Anchor:
    """A pull to the pretrained weights: `strength` times the distance, times each weight's importance, added
    to its gradient.

    With equal importance it is L2-SP (arXiv:1802.01483, eq. 3), with the Fisher information EWC
    (arXiv:1612.00796, eq. 3). It is added after clipping, so that a large loss gradient does not outweigh it.
    A new head is not pulled.

    Args:
        importance: of each weight, by parameter. Default: equal.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        has_new_head: bool,
        importance: Mapping[str, torch.Tensor] | None = None,
    ):
        self._strength = strength
        self._importance = None if importance is None else dict(importance)
        head = head_prefixes(model) if has_new_head else ()
        self._start = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(head)
        }

    @torch.no_grad()
    def pull(self, model: nn.Module) -> None:
        """Add the pull to the gradients of a model, which may be wrapped."""
        for name, parameter in _unwrapped(model).named_parameters():
            start = self._start.get(name)
            if start is None or parameter.grad is None:
                continue
            if start.device != parameter.device:
                start = self._start[name] = start.to(parameter.device)
            distance = parameter.detach() - start
            if self._importance is not None:
                importance = self._importance[name]
                if importance.device != parameter.device:
                    importance = self._importance[name] = importance.to(parameter.device)
                distance.mul_(importance)
            parameter.grad.add_(distance, alpha=self._strength)
