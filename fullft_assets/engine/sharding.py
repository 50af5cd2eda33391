"""sharding: a model whose weights, gradients and moments lie in parts on several processes (FSDP2), and whole again at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from transformers import PreTrainedModel, Trainer, TrainingArguments

from fullft_assets.errors import SettingsError
from fullft_assets.models import precision
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.contradictions import of_sharding


def arguments(settings: TrainingSettings, model: PreTrainedModel) -> dict[str, Any]:
    """Return what Trainer must be told to share a model; nothing where each process holds the whole of it."""
    if settings.sharding == "none":
        return {}
    # Whole checkpoints: another number of processes, or a single one, can read them. Loading them so on each process is
    # left to the recipe, which draws what is new in a model from the seed.
    config = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}
    found = {"fsdp": True, "fsdp_config": {**config, "transformer_layer_cls_to_wrap": _units(model)}}
    if settings.sharding == "fsdp2_offload":
        found["fsdp_config"]["cpu_offload"] = True
        if torch.cuda.is_available():
            # What lies in the host's memory is summed up there (the gradients' norm), which NCCL cannot do.
            found["ddp_backend"] = "cuda:nccl,cpu:gloo"
    return found


def accumulation(settings: TrainingSettings) -> dict[str, Any]:
    """Return what accelerate must be told of passes that one step adds up.

    Left alone, each process would keep the whole model's gradients until the last pass of a step, which parts are there to avoid.
    """
    return {} if settings.sharding == "none" else {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


def _units(model: PreTrainedModel) -> list[str]:
    """Return the classes whose modules are gathered as one.

    A model names them itself; BERT also the one around its word embeddings. accelerate makes these a unit of their own, too, and fails
    on weights that it has shared already.
    """
    embeddings, named = model.get_input_embeddings(), set(model._no_split_modules or ())
    around = {type(module).__name__ for module in model.modules() if any(inner is embeddings for inner in module.modules())}
    if found := sorted({type(module).__name__ for module in model.modules()} & named - around):
        return found
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    return sorted({type(layer).__name__ for layer in layers})


def enable_on_cpu(trainer: Trainer) -> None:
    """Let accelerate shard on CPUs, too: it knows FSDP for accelerators alone, and would fall back to DDP without a word.

    Args:
        trainer: whose accelerator was just made.
    """
    if not trainer.args.fsdp or trainer.is_fsdp_enabled:
        return
    state = trainer.accelerator.state
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if trainer.accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(trainer.accelerator.mixed_precision)
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        # Pinned memory is for copies to a card.
        plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)
    state.fsdp_plugin = plugin
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


class _Apart(Trainer):
    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        enable_on_cpu(self)


def take_apart(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, told: TrainingArguments
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """Return a model and its optimizer as they lie on the processes in training, without one; all processes must ask for it.

    Args:
        model: whole.
        optimizer: of its weights.
        told: what Trainer is told, `arguments` among it.
    """
    return _Apart(model=model, args=told).accelerator.prepare(model, optimizer)


def require(settings: TrainingSettings, num_processes: int) -> None:
    """Find out before any work whether the model can be sharded.

    Raises:
        SettingsError: there is one process, or a setting or a GPU that does not go with sharding.
    """
    for key, message in of_sharding(settings, num_processes):
        raise SettingsError(f"{'.'.join(key)}: {message}")
    if settings.sharding == "fsdp2_offload" and precision.of(settings) == "fp16":
        raise SettingsError("training.sharding: fp16's scaling was not tried with fsdp2_offload; give precision: fp32")


def load(trainer: Trainer, checkpoint: Path, model: PreTrainedModel | None = None) -> None:
    """Load a checkpoint's weights into a model that is whole.

    Args:
        trainer: not training.
        checkpoint: a folder that it has written.
        model: as `whole` returned it. Default: the trainer's own, which it has not yet taken apart.
    """
    if not trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint(str(checkpoint))
        return
    # Trainer would look for its own copy, in parts. Tied weights are written once.
    (trainer.model if model is None else model).load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)


def whole(trainer: Trainer, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return a trained model as one process holds it: gathered where it lies in parts, which all processes must ask for.

    Args:
        trainer: after training.
        make: loads the same model, untrained. Only the first process gets trained weights.
    """
    if not any(isinstance(module, FSDPModule) for module in trainer.model.modules()):
        return trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model)
    model = make()
    if weights:
        model.load_state_dict(weights)
    return model
