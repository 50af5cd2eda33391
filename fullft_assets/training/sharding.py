"""A model that several processes share from the start: each loads its part of the weights, and they gather
them only to write the trained model.

The first process reads the weights into its host's memory, the others know their shapes alone. One unit after
the other, such as a layer, is sent to all processes, which divide it (FSDP2) before the next one comes.

In a checkpoint each process writes its part of every tensor, and any number of processes reads them. torch's
own distributed checkpoints have a pickled index, which would run the code of whoever can write into the
store; a part is a safetensors file, and its header says which rows of each tensor it has.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer
from transformers import PreTrainedModel

from fullft_assets.models import layers, loading, precision
from fullft_assets.models.hardware import free_memory
from fullft_assets.models.inference import device, is_sharded, reshard
from fullft_assets.ranks import is_first_rank, num_local_ranks, num_ranks
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.optimizers.low_memory import local, part_like

#: In a part's header: the first row of each tensor that is divided; others are complete in each part.
_FIRST_ROWS = "first_rows"
#: Beginning of the names of weights; before the name of a moment is its own.
_WEIGHTS = "weights/"


def load(
    read: Callable[[TrainingSettings], PreTrainedModel], settings: TrainingSettings, *, is_shared: bool
) -> PreTrainedModel:
    """Return a model for training, whose frozen weights are frozen. Of several processes that share it, which
    must all call this, each has its part on its device, and at most one unit more while it loads.

    Args:
        read: a recipe's `load` or `load_original`.

    Raises:
        SettingsError: see `Recipe.load`; or more layers are frozen than there are.
    """

    def make() -> PreTrainedModel:
        return layers.freeze(read(settings), settings)

    # Of two large models at a time; one that was shared is part of a cycle.
    free_memory()
    return load_parts(make, settings) if is_shared else make()


def load_scored(
    load: Callable[[], PreTrainedModel], settings: TrainingSettings, *, is_shared: bool
) -> PreTrainedModel:
    """Return a model that is scored and not trained: in parts where processes share it."""
    free_memory()
    # In the precision of scoring, whatever training computes in.
    return (
        load_parts(load, settings.model_copy(update={"precision": "auto", "weights": "fp32"}))
        if is_shared
        else load()
    )


def load_parts(make: Callable[[], PreTrainedModel], settings: TrainingSettings) -> PreTrainedModel:
    """Return a model that processes share, which must all call this.

    Args:
        make: loads it; the first process reads its weights.
    """
    ranks.connect()
    with nullcontext() if is_first_rank() else loading.without_weights():
        model = make()
    shard(model, settings, fill)
    return model


def shard(
    model: PreTrainedModel, settings: TrainingSettings, fill: Callable[[torch.nn.Module], None]
) -> None:
    """Leave each process its part of a model (FSDP2).

    Args:
        fill: called with each unit right before it is divided, the model itself last.
    """
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.of(settings)]
    # Sums over processes, and what the model returns, such as a summed loss, would lose digits.
    policy = fsdp.MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mp_policy": policy}
    if settings.sharding == "fsdp2_by_host":
        of_host = num_local_ranks()
        options["mesh"] = init_device_mesh(
            device().type, (num_ranks() // of_host, of_host), mesh_dim_names=("host", "part")
        )
    if settings.sharding == "fsdp2_offload":
        # Pinned memory is for copies to a card.
        options["offload_policy"] = fsdp.CPUOffloadPolicy(pin_memory=torch.accelerator.is_available())
    for module in units(model):
        fill(module)
        fsdp.fully_shard(module, **options)
    fill(model)
    options["mp_policy"] = replace(policy, output_dtype=torch.float32)
    fsdp.fully_shard(model, **options)


def units(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the modules that are gathered as one unit, inner ones first; what is in none is the model's
    own.
    """
    names = _classes_of_units(model)
    modules = [module for module in reversed(list(model.modules())) if type(module).__name__ in names]
    embeddings = model.get_input_embeddings()
    head = model.get_output_embeddings()
    return modules if head is not None and head.weight is embeddings.weight else [*modules, embeddings]


def _classes_of_units(model: PreTrainedModel) -> list[str]:
    """Return the classes whose modules are gathered as one unit.

    A model names them itself; BERT also names the module around its word embeddings, which are a unit of
    their own, or belong to the model's unit where they are the output head, too.
    """
    embeddings = model.get_input_embeddings()
    classes = {type(module).__name__ for module in model.modules()} - {
        type(module).__name__
        for module in model.modules()
        if any(inner is embeddings for inner in module.modules())
    }
    if names := sorted(classes & set(model._no_split_modules or ())):
        return names
    layers = max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)
    return sorted({type(layer).__name__ for layer in layers})


def fill(unit: torch.nn.Module) -> None:
    """Give the tensors of a unit the first process's values, on this process's device; tied ones stay so."""
    values: dict[int, torch.Tensor] = {}
    for module in unit.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is not None and not isinstance(tensor, DTensor):
                    if id(tensor) not in values:
                        values[id(tensor)] = _from_first(tensor)
                    tensors[name] = values[id(tensor)]


def _from_first(tensor: torch.Tensor) -> torch.Tensor:
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device())
    if is_first_rank():
        value.copy_(tensor.detach())
    torch.distributed.broadcast(value, 0)
    return (
        torch.nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else value
    )


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
    whole_model = make() if is_first_rank() else model
    targets = dict(weights_of(whole_model))
    for name, weight in weights_of(model):
        whole: Any = weight.to(device())
        if isinstance(weight, DTensor):
            whole = whole.full_tensor()
        if is_first_rank():
            targets[name].copy_(whole)
    return whole_model


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
            if isinstance(tensor, DTensor):
                self._first_rows[name] = _first_row(tensor)
            self._tensors[name] = local(tensor).detach().to("cpu", copy=True).contiguous()

    def write(self, folder: Path) -> list[str]:
        """Write it into a folder and free it; return the name of its file."""
        save_file(self._tensors, folder / self._name, {_FIRST_ROWS: json.dumps(self._first_rows)})
        self._tensors = {}
        return [self._name]


class Parts:
    """The parts in a folder, however many processes wrote them; what this process needs of them is read."""

    def __init__(self, folder: Path):
        self._files = [safe_open(path, "pt") for path in sorted(folder.glob("part-*.safetensors"))]
        self._first_rows = [json.loads(file.metadata()[_FIRST_ROWS]) for file in self._files]

    def load_weights(self, model: PreTrainedModel) -> None:
        """Read the weights of a model, whose parts are resharded."""
        for name, tensor in weights_of(model):
            self._read(f"{_WEIGHTS}{name}", tensor)

    def load_moments(self, model: PreTrainedModel, optimizer: Optimizer) -> None:
        """Read the state of an optimizer."""
        weights: dict[str, Any] = dict(model.named_parameters())
        moments: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        keys = self._files[0].keys()
        for key in [key for key in keys if not key.startswith(_WEIGHTS)]:
            moment, _, name = key.partition("/")
            weight = weights[name]
            if key in self._first_rows[0]:
                rows = self._files[0].get_slice(key)[:0]
                moments[name][moment] = part_like(
                    weight, rows.new_zeros((len(local(weight)), *rows.shape[1:]), device=weight.device)
                )
                self._read(key, moments[name][moment])
            else:
                moments[name][moment] = self._files[0].get_tensor(key)
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
        part = tensor.to_local()
        start = _first_row(tensor)
        for file, first_rows in zip(self._files, self._first_rows, strict=True):
            rows = file.get_slice(name)
            first = first_rows[name]
            low = max(start, first)
            high = min(start + len(part), first + rows.get_shape()[0])
            if low < high:
                part[low - start : high - start].copy_(rows[low - first : high - first])


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights and buffers that are saved; weights that are tied come once."""
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters())
    yield from ((name, tensor) for name, tensor in model.state_dict().items() if name not in tied)


def _tensors(model: PreTrainedModel, optimizer: Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((f"{_WEIGHTS}{name}", tensor) for name, tensor in weights_of(model))
    for name, weight in model.named_parameters():
        yield from (
            (f"{moment}/{name}", tensor) for moment, tensor in optimizer.state.get(weight, {}).items()
        )


def _first_row(tensor: DTensor) -> int:
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offsets[0]
