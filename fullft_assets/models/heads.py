"""The output layer of a classifier or tagger: what it reads of the model below, and weights that were fitted
on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fullft_assets.jobs.progress import Listener
from fullft_assets.models import layers
from fullft_assets.models.inference import forward_batches

#: Windows of documents: the token ids of each.
Windows = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class HeadWeights:
    """Weights of an output layer.

    Attributes:
        coefficients: [outputs, features].
        intercept: [outputs].
    """

    coefficients: np.ndarray
    intercept: np.ndarray


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the last linear layer of a model's head, which has an output for each label."""
    head = layers.head_prefixes(model)
    output_layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.".startswith(head)
        and module.out_features == model.config.num_labels
    ]
    assert output_layers, f"{type(model).__name__} has a linear layer for its labels"
    return output_layers[-1]


def has_intercept(model: PreTrainedModel) -> bool:
    """Return whether a model's output layer has an intercept; the classifiers of decoders have none."""
    return output_layer(model).bias is not None


def set_weights(model: PreTrainedModel, weights: HeadWeights) -> None:
    """Put weights into a model's output layer; an intercept only where the layer has one."""
    layer = output_layer(model)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights.coefficients))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(weights.intercept))


def read_by_head(
    model: PreTrainedModel, windows: Windows, listener: Listener | None
) -> Iterator[tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor]]:
    """Yield (document, window) of each window of a pass, what the output layer reads, and the attention mask
    [windows, tokens].

    It reads [windows, features] in a classifier, and [windows, tokens, features] in a tagger and in the
    classifier of a decoder.
    """
    inputs_of_layer: list[torch.Tensor] = []
    hook = output_layer(model).register_forward_pre_hook(
        lambda layer, inputs: inputs_of_layer.append(inputs[0].float())
    )
    try:
        for items, inputs, _ in forward_batches(model, windows, listener):
            yield items, inputs_of_layer.pop(), inputs["attention_mask"]
    finally:
        hook.remove()


def features_of_documents(
    model: PreTrainedModel, windows: Windows, listener: Listener | None = None
) -> np.ndarray:
    """Return what a classifier's output layer reads of each document [documents, features]: the mean over its
    windows.
    """
    features = np.zeros((len(windows), output_layer(model).in_features), np.float32)
    for items, states, mask in read_by_head(model, windows, listener):
        if states.dim() == 3:  # a decoder's classifier: the last token decides
            states = states[torch.arange(len(states)), mask.sum(1) - 1]
        np.add.at(features, [row for row, _ in items], states.cpu().numpy())
    return features / np.array([len(document) for document in windows], np.float32)[:, None]
