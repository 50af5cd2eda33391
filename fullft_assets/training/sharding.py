"""A model that several processes share from the start: each loads its part of the weights, and they gather
them only to write the trained model.

The first process reads the weights into its host's memory, the others know their shapes alone. One unit after
the other, such as a layer, is sent to all processes, which divide it (FSDP2) before the next one comes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fullft_assets.errors import FullftError
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.models import layers, loading
from fullft_assets.models.inference import device, is_sharded, reshard
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.loop import connect_processes, shard
from fullft_assets.training.parts import weights_of
from fullft_assets.training.recipe import Recipe


def load(recipe: Recipe, settings: TrainingSettings, num_processes: int) -> PreTrainedModel:
    """Return a recipe's model, whose frozen weights are frozen. Of several processes that share it, which
    must all call this, each has its part on its device, and at most one unit more while it loads.

    Raises:
        SettingsError: see `Recipe.load`; or more layers are frozen than there are.
    """
    is_shared = settings.sharding != "none" and num_processes > 1
    if is_shared:
        connect_processes()
    problem: FullftError | None = None
    model: PreTrainedModel | None = None
    try:
        with loading.without_weights() if is_shared and not is_first_rank() else nullcontext():
            model = recipe.load(settings)
            layers.freeze(model, settings)
    except FullftError as error:
        problem = error
    if is_shared:
        # The others would wait for weights that never come.
        problem = ranks.from_first(problem) or problem
    if problem is not None:
        raise problem
    assert model is not None, "it was loaded, or there is a problem"
    if is_shared:
        shard(model, settings, fill)
    return model


def fill(unit: nn.Module) -> None:
    """Give the tensors of a unit the first process's values, on this process's device; tied ones stay so."""
    filled: dict[int, torch.Tensor] = {}
    for module in unit.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if id(tensor) not in filled:
                    filled[id(tensor)] = _from_first(tensor)
                tensors[name] = filled[id(tensor)]


def _from_first(tensor: torch.Tensor) -> torch.Tensor:
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device())
    if is_first_rank():
        value.copy_(tensor.detach())
    torch.distributed.broadcast(value, 0)
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


@torch.no_grad()
def complete_model(model: PreTrainedModel, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return a model as one process holds it: of one that processes share, for which all must call this, the
    first process gets all weights in its host's memory, one tensor after the other; the others have their
    part.

    Args:
        make: loads the same model, untrained.
    """
    if not is_sharded(model):
        return model
    reshard(model)
    gathered = make() if is_first_rank() else model
    targets = dict(weights_of(gathered))
    for name, weight in weights_of(model):
        whole: Any = weight.to(device())
        if isinstance(weight, DTensor):
            whole = whole.full_tensor()
        if is_first_rank():
            targets[name].copy_(whole)
    return gathered
