"""transformers' Trainer as the training loop uses it: its arguments, and the methods that differ; and
sharding (FSDP2): each of several processes has a part of weights, gradients and moments, at the end one has
the model.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from fullft_assets.errors import SettingsError
from fullft_assets.models import precision
from fullft_assets.models.loading import require_names
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import room_needed
from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer
from fullft_assets.training.recipe import Prepared


def _sharding_arguments(settings: TrainingSettings, model: PreTrainedModel) -> dict[str, Any]:
    if settings.sharding == "none":
        return {}
    # Checkpoints are complete, so another number of processes can read them. The recipe loads the model on
    # each process: it draws what is new in a model from the seed.
    config = {
        "version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
        "transformer_layer_cls_to_wrap": _units(model),
    } | ({"cpu_offload": True} if settings.sharding == "fsdp2_offload" else {})
    return {"fsdp": True, "fsdp_config": config, **_backend_arguments(settings)}


def _backend_arguments(settings: TrainingSettings) -> dict[str, Any]:
    # The norm of gradients in the host's memory is summed there, which NCCL cannot do.
    needs_both = settings.sharding == "fsdp2_offload" and torch.cuda.is_available()
    return {"ddp_backend": "cuda:nccl,cpu:gloo"} if needs_both else {}


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
    """Trainer that shards on CPUs, too."""

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


def load_weights(trainer: Trainer, checkpoint: Path, model: PreTrainedModel | None = None) -> None:
    """Load a checkpoint's weights into a complete model.

    Args:
        model: as `gather_model` returned it. Default: the trainer's own, which is not yet sharded.
    """
    if not trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint(str(checkpoint))
        return
    # Trainer would look for sharded weights. Tied weights are written once.
    _model_of(trainer, model).load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)


def gather_model(trainer: Trainer, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
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


#: Folder inside the work folder in which a checkpoint is written.
UNFINISHED = "unfinished"
#: Inside a checkpoint: the state of the generators of each process, by rank.
RANDOM_STATES = "random_states.pt"


def training_arguments(
    settings: TrainingSettings,
    model: PreTrainedModel,
    folder: Path,
    *,
    seed: int,
    num_processes: int,
    items_a_pass: int,
    num_steps: int,
    resumable: bool,
) -> TrainingArguments:
    """Return Trainer's arguments.

    Args:
        items_a_pass: items of the dataset in a forward pass.
    """
    computed_in = precision.of(settings)
    has_gpu = torch.cuda.is_available()
    accelerator: dict[str, Any] = {"non_blocking": has_gpu}
    if settings.sharding != "none":
        # By default each process would keep the gradients of the complete model until the last pass of a
        # step, which sharding is there to avoid.
        accelerator["gradient_accumulation_kwargs"] = {"sync_each_batch": True}
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        # The order of the rows and the rate of each step.
        per_device_train_batch_size=items_a_pass,
        gradient_accumulation_steps=accumulation_steps(settings, num_processes),
        max_steps=num_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=round(settings.warmup_share * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        # The hardware.
        bf16=computed_in == "bf16",
        fp16=computed_in == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_pin_memory=has_gpu,  # copies from pinned memory do not block
        accelerator_config=accelerator,
        use_cpu=not has_gpu,
        # Logs and checkpoints; the callback, the step log and `publish` do most of that.
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default hides NaN losses behind the running mean
        save_strategy="steps" if resumable else "no",
        save_steps=settings.checkpoint_every_steps,
        save_total_limit=None,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **_sharding_arguments(settings, model),
    )
    # A process has one GPU. If it sees more, Trainer would wrap the model in nn.DataParallel: another batch
    # size, and a model that sees parts of rows that belong together.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Return the forward passes of each process in one optimizer step."""
    rows_a_pass = settings.micro_batch_size * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes"
            f" ({rows_a_pass})"
        )
    return settings.batch_size // rows_a_pass


def connect_processes(settings: TrainingSettings, folder: Path) -> None:
    """Connect the processes of a training as Trainer would do it later: where to begin is the first one's
    decision.
    """
    arguments = TrainingArguments(
        str(folder), use_cpu=not torch.cuda.is_available(), **_backend_arguments(settings)
    )
    _ = arguments.device  # asking for it connects


def random_states() -> dict[str, Any]:
    """Return the state of this process's generators, of a GPU that of its own; `torch.load` reads it as
    weights only.
    """
    kind, keys, *more = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *more),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(state: Mapping[str, Any]) -> None:
    """Set the generators back to a `current` state; a GPU's stays where the state is of a process without
    one.
    """
    kind, keys, *more = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *more))
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class FineTuner(_ShardingTrainer):
    """Trainer with the optimizer of the settings, whose checkpoints are complete or not there at all.

    Args:
        publish: moves a checkpoint that was written aside to its place; called in the first process with both
            folders.
    """

    def __init__(
        self,
        *,
        prepared: Prepared,
        settings: TrainingSettings,
        seed: int,
        publish: Callable[[Path, Path], None],
        **options: Any,
    ):
        super().__init__(**options)
        self._prepared = prepared
        self._settings = settings
        self._seed = seed
        self._publish = publish
        self._in_backward: LowMemoryOptimizer | None = None
        # Trainer then counts the labels of all passes and processes of a step, and does not divide the loss
        # again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the recipe's summed loss over the labels of the whole step."""
        assert not return_outputs and num_items_in_batch is not None, "it only trains"
        labels = inputs.pop("labels")
        total = self._prepared.total_loss(model, inputs, labels)
        # A step may have nothing to learn from, such as prompts alone.
        loss = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        # Gradients are averaged over the processes, while the labels are counted over all of them.
        return loss * self.accelerator.num_processes if self.accelerator.num_processes > 1 else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer of the settings; biases and norms have no weight decay."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(trained))
            groups: list[dict[str, Any]] = []
            for has_decay in (True, False):
                weights = [
                    weight
                    for name, weight in trained.named_parameters()
                    if weight.requires_grad and (name in decayed) is has_decay
                ]
                decay = self._settings.weight_decay if has_decay else 0.0
                if weights:
                    groups.append(
                        {"params": weights, "lr": self._settings.learning_rate, "weight_decay": decay}
                    )
            self.optimizer = self._settings.chosen_optimizer.build(
                groups, self._settings.weights, self._settings.max_grad_norm, self._seed
            )
            if self._settings.steps_in_backward:
                assert isinstance(self.optimizer, LowMemoryOptimizer), "an optimizer in the backward pass"
                self._in_backward = self.optimizer
        return self.optimizer

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Make one pass, which an optimizer in the backward pass may need twice."""
        stepping = self._in_backward
        if stepping is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if stepping.measures_first:
            # The same pass twice: dropout has to draw the same numbers.
            state = random_states()
            with stepping.measuring():
                super().training_step(model, inputs, num_items_in_batch)
            restore_random_states(state)
        with stepping.updating():
            return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._in_backward is not None:
            return self._in_backward.norm
        return super()._clip_grad_norm(model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        # The checkpoint may have the rate from before a roll-back.
        scheduler: Any = self.lr_scheduler
        assert self.optimizer is not None
        peak = self._settings.learning_rate
        scheduler.base_lrs = [peak for _ in scheduler.base_lrs]
        scheduler._last_lr = [peak * shape(scheduler.last_epoch) for shape in scheduler.lr_lambdas]
        for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
            group["initial_lr"], group["lr"] = peak, rate

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: Trainer's own count goes over all parameters in every pass, and counts padding."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Call the callbacks alone: Trainer would write every line into every checkpoint; the step log has
        them.
        """
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _save_rng_state(self, output_dir: str) -> None:
        # In one file of the first process: hosts need not share a disk, and another number of processes may
        # continue.
        states = ranks.of_all(random_states())
        if self.args.should_save:
            torch.save(states, Path(output_dir) / RANDOM_STATES)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = torch.load(Path(checkpoint) / RANDOM_STATES, weights_only=True)
            # Of another number of processes: they began with the same state, and draw the more differently
            # the longer they train.
            restore_random_states(states[self.args.process_index % len(states)])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer writes into the final folder; a run that is killed meanwhile would resume from an incomplete
        # checkpoint.
        assert self.args.output_dir is not None
        folder = Path(self.args.output_dir)
        aside = folder / UNFINISHED
        written = aside / f"checkpoint-{self.state.global_step}"
        self.args.output_dir = str(aside)
        try:
            with room_needed(folder, f"the checkpoint of step {self.state.global_step:,}"):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nothing reads
                    self._publish(written, folder / written.name)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # frees the room that an incomplete checkpoint took
            raise
        finally:
            self.args.output_dir = str(folder)
        self.accelerator.wait_for_everyone()


# Trainer would never call a method whose name it does not know.
require_names(
    Trainer,
    (name for name in {**vars(_ShardingTrainer), **vars(FineTuner)} if not name.startswith("__")),
    in_source=("model_accepts_loss_kwargs", "loss_is_scaled_for_ga"),
)
require_names(TrainingArguments, in_source=("_n_gpu",))
require_names(LRScheduler, in_source=("_last_lr",))
