"""The parts of a sharded checkpoint: each process writes its part of every tensor, and any number of
processes reads them.

torch's own distributed checkpoints have a pickled index, which would run the code of whoever can write into
the store; a part is a safetensors file, and its header says which rows of each tensor it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer
from transformers import PreTrainedModel

from fullft_assets.errors import StoreError

#: In a part's header: the first row of each tensor that is divided; others are complete in each part.
_FIRST_ROWS = "first_rows"
#: Beginning of the names of weights; before the name of a moment is its own.
_WEIGHTS = "weights/"


class Part:
    """What this process holds of a model and an optimizer, copied to the host's memory: training goes on
    while it is written.

    Args:
        rank: of this process.
    """

    def __init__(self, model: PreTrainedModel, optimizer: Optimizer, rank: int):
        self._name = f"part-{rank:05d}.safetensors"
        self._first_rows: dict[str, int] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        for name, tensor in _tensors(model, optimizer):
            part = tensor
            if isinstance(tensor, DTensor):
                part = tensor.to_local()
                self._first_rows[name] = _first_row(tensor)
            self._tensors[name] = part.detach().to("cpu", copy=True).contiguous()

    def write(self, folder: Path) -> list[str]:
        """Write it into a folder and free it; return the name of its file."""
        save_file(self._tensors, folder / self._name, {_FIRST_ROWS: json.dumps(self._first_rows)})
        self._tensors = {}
        return [self._name]


class Parts:
    """The parts in a folder, however many processes wrote them; what this process needs of them is read.

    Raises:
        StoreError: there is none.
    """

    def __init__(self, folder: Path):
        self._files = [safe_open(path, "pt") for path in sorted(folder.glob("part-*.safetensors"))]
        if not self._files:
            raise StoreError(f"{folder}: an earlier version wrote it; delete it to train again")
        self._first_rows = [json.loads(file.metadata()[_FIRST_ROWS]) for file in self._files]

    def load_weights(self, model: PreTrainedModel) -> None:
        """Read the weights of a model, whose parts are resharded."""
        for name, tensor in weights_of(model):
            self._read(f"{_WEIGHTS}{name}", tensor)

    def load_moments(self, model: PreTrainedModel, optimizer: Optimizer) -> None:
        """Read the state of an optimizer."""
        weights, moments = dict(model.named_parameters()), {}
        for key in self._files[0].keys():  # noqa: SIM118  # a file, not a mapping
            moment, _, name = key.partition("/")
            if f"{moment}/" == _WEIGHTS:
                continue
            is_divided = any(key in first_rows for first_rows in self._first_rows)
            tensor = (
                torch.zeros_like(weights[name].detach()) if is_divided else self._files[0].get_tensor(key)
            )
            if is_divided:
                self._read(key, tensor)
            moments.setdefault(name, {})[moment] = tensor
        names = {id(weight): name for name, weight in weights.items()}
        state = optimizer.state_dict()
        in_order = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
        state["state"] = {number: moments[name] for number, name in enumerate(in_order) if name in moments}
        optimizer.load_state_dict(state)

    @torch.no_grad()
    def _read(self, name: str, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, DTensor):
            tensor.copy_(self._files[0].get_tensor(name))
            return
        part, start = tensor.to_local(), _first_row(tensor)
        for file, first_rows in zip(self._files, self._first_rows, strict=True):
            rows, first = file.get_slice(name), first_rows[name]
            low = max(start, first)
            high = min(start + len(part), first + rows.get_shape()[0])
            if low < high:
                part[low - start : high - start].copy_(rows[low - first : high - first])


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights and buffers that are saved; tied ones once."""
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        if name not in tied:
            yield name, tensor


def _tensors(model: PreTrainedModel, optimizer: Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights_of(model):
        yield f"{_WEIGHTS}{name}", tensor
    for name, weight in model.named_parameters():
        for moment, tensor in optimizer.state.get(weight, {}).items():
            yield f"{moment}/{name}", tensor


def _first_row(tensor: DTensor) -> int:
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offsets[0]
