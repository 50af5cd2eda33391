"""Sharding (FSDP2): each of several processes has a part of weights, gradients and moments; at the end one
has the complete model.
"""

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

from fullft_assets.settings import TrainingSettings


def sharding_arguments(settings: TrainingSettings, model: PreTrainedModel) -> dict[str, Any]:
    """Return Trainer's arguments for sharding a model; none where each process holds all of it."""
    if settings.sharding == "none":
        return {}
    # Checkpoints are complete, so another number of processes can read them. The recipe loads the model on
    # each process: it draws what is new in a model from the seed.
    config: dict[str, Any] = {
        "version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    }
    config["transformer_layer_cls_to_wrap"] = _units(model)
    arguments: dict[str, Any] = {"fsdp": True, "fsdp_config": config}
    if settings.sharding == "fsdp2_offload":
        config["cpu_offload"] = True
    return arguments | backend_arguments(settings)


def backend_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """Return Trainer's argument for how processes are connected, where it is not the default one."""
    # The norm of gradients in the host's memory is summed there, which NCCL cannot do.
    needs_both = settings.sharding == "fsdp2_offload" and torch.cuda.is_available()
    return {"ddp_backend": "cuda:nccl,cpu:gloo"} if needs_both else {}


def accumulation_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """Return accelerate's arguments for gradient accumulation.

    By default each process would keep the gradients of the complete model until the last pass of a step,
    which sharding is there to avoid.
    """
    return {} if settings.sharding == "none" else {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


def _units(model: PreTrainedModel) -> list[str]:
    """Return the classes whose modules are gathered as one unit.

    A model names them itself; BERT also names the module around its word embeddings. accelerate makes the
    embeddings a unit of their own, and fails on weights that it has sharded already.
    """
    embeddings, named = model.get_input_embeddings(), set(model._no_split_modules or ())
    around = {
        type(module).__name__
        for module in model.modules()
        if any(inner is embeddings for inner in module.modules())
    }
    if names := sorted({type(module).__name__ for module in model.modules()} & named - around):
        return names
    layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    return sorted({type(layer).__name__ for layer in layers})


def enable_on_cpu(trainer: Trainer) -> None:
    """Enable sharding on CPUs: accelerate knows FSDP for accelerators alone, and would silently fall back to
    DDP.
    """
    if not trainer.args.fsdp or trainer.is_fsdp_enabled:
        return
    state = trainer.accelerator.state
    options: dict[str, Any] = dict(trainer.args.fsdp_plugin_args or {})
    plugin = FullyShardedDataParallelPlugin(**options)
    if trainer.accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(trainer.accelerator.mixed_precision)
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        # Pinned memory is for copies to a card.
        plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)
    state.fsdp_plugin = plugin
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


class _ShardingTrainer(Trainer):
    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        enable_on_cpu(self)


def shard(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, arguments: TrainingArguments
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """Return a model and its optimizer sharded as in training, without a training; all processes must call
    this.
    """
    return _ShardingTrainer(model=model, args=arguments).accelerator.prepare(model, optimizer)


def load(trainer: Trainer, checkpoint: Path, model: PreTrainedModel | None = None) -> None:
    """Load a checkpoint's weights into a complete model.

    Args:
        model: as `gather` returned it. Default: the trainer's own, which is not yet sharded.
    """
    if not trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint(str(checkpoint))
        return
    # Trainer would look for sharded weights. Tied weights are written once.
    _model_of(trainer, model).load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)


def gather(trainer: Trainer, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return a trained model as one process holds it; a sharded one is gathered, for which all processes must
    call this.

    Args:
        make: loads the same model, untrained. Only the first process gets trained weights.
    """
    trained = _model_of(trainer)
    if not any(isinstance(module, FSDPModule) for module in trained.modules()):
        return trainer.accelerator.unwrap_model(trained)
    weights = trainer.accelerator.get_state_dict(trained)
    model = make()
    if weights:
        model.load_state_dict(weights)
    return model


def _model_of(trainer: Trainer, model: PreTrainedModel | None = None) -> Any:
    model_or_wrapper = trainer.model if model is None else model
    assert model_or_wrapper is not None, "the engine gives each Trainer its model"
    return model_or_wrapper
