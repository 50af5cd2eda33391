"""Regularization towards the base model: L2-SP pulls all weights alike, EWC each by its importance for
general text. And gradual unfreezing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from fullft_assets.errors import SettingsError
from fullft_assets.models import layers
from fullft_assets.models.inference import move
from fullft_assets.settings import TrainingSettings
from fullft_assets.training.recipe import Recipe


def anchors(recipe: Recipe, settings: TrainingSettings, seed: int) -> list[layers.Anchor]:
    """Return the pulls that the settings ask for; they lead to the base model also where training starts from
    another one.

    Torch's random state stays as it is.
    """
    if not settings.l2_sp and not settings.ewc:
        return []
    with torch.random.fork_rng():
        original = recipe.load_original(settings)
    layers.freeze(original, settings)
    found = []
    if settings.l2_sp:
        found.append(layers.Anchor(original, settings.l2_sp, has_new_head=recipe.has_new_head))
    if settings.ewc:
        importance = fisher(recipe, original, seed)
        found.append(
            layers.Anchor(original, settings.ewc, has_new_head=recipe.has_new_head, importance=importance)
        )
    return found


def fisher(recipe: Recipe, model: PreTrainedModel, seed: int) -> Mapping[str, torch.Tensor]:
    """Return the diagonal of the Fisher information of a base model on general text, by parameter; scaled so
    that its mean is 1.

    Each text's log-likelihood is differentiated alone and the squares are averaged (Kirkpatrick et al. 2017,
    arXiv:1612.00796). It is the empirical Fisher information: of the given texts, not of texts that the model
    would write.

    Args:
        model: the base model; its gradients are dropped, its mode is restored.

    Raises:
        SettingsError: there is no text.
    """
    was_training = model.training
    model.eval()
    move(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    sums = {name: torch.zeros_like(parameter) for name, parameter in trained}
    count = 0
    for value in recipe.log_likelihoods(model, seed):
        gradients = torch.autograd.grad(value, [parameter for _, parameter in trained], allow_unused=True)
        for (name, _), gradient in zip(trained, gradients, strict=True):
            if gradient is not None:  # a new head is not part of it
                sums[name].add_(gradient.detach().square())
        count += 1
    model.train(was_training)
    if not count:
        raise SettingsError(
            "training.ewc: neither snapshot.replay nor snapshot.general has a text to estimate the importance"
            " of weights on"
        )
    total = sum(float(values.double().sum()) for values in sums.values())
    size = sum(values.numel() for values in sums.values())
    if not total > 0:
        raise SettingsError(
            "training.ewc: the importance of the weights for the general texts is zero or not finite; look at"
            " snapshot.general"
        )
    return {name: values.mul_(size / total) for name, values in sums.items()}


class Pull(TrainerCallback):
    """L2-SP and EWC: adds the pull towards the pretrained weights to the gradients, after clipping."""

    def __init__(self, anchors: Sequence[layers.Anchor]):
        self._anchors = anchors

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **kwargs):
        """Add the pulls to the step's gradients."""
        for anchor in self._anchors:
            anchor.pull(model)


class Unfreeze(TrainerCallback):
    """Gradual unfreezing in one process; several processes drop gradients before clipping instead."""

    def __init__(self, unfreezing: layers.Unfreezing):
        self._unfreezing = unfreezing

    def on_step_begin(self, args, state, control, model: Any = None, **kwargs):
        """Switch on the weights that the step trains."""
        self._unfreezing.apply(model, state.global_step)
