"""The training loop: where a model is placed, its optimizer steps, and what a checkpoint contains.

Several processes have a copy of the model each (DDP), or a part of its weights, gradients and moments each
(FSDP2).
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate.utils import convert_to_fp32
from safetensors.torch import load_model, save_file
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, get_scheduler, set_seed

from fullft_assets.errors import SettingsError, StoreError, classify
from fullft_assets.models import layers, precision
from fullft_assets.models.hardware import of_accelerator
from fullft_assets.models.inference import device, is_sharded, move, reshard, to_device
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.ranks import is_first_rank, num_local_ranks
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import step_of
from fullft_assets.training.feed import Batch
from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer
from fullft_assets.training.recipe import Prepared
from fullft_assets.training.regularization import Anchor
from fullft_assets.training.sharding import Part, Parts, weights_of

#: Files of a checkpoint: the complete weights and the optimizer's state, a sharded one has `parts` in their
#: place; how often the rate was changed; the loss scale of fp16; each process's generators, by rank.
WEIGHTS = "model.safetensors"
_OPTIMIZER = "optimizer.pt"
_SCHEDULE = "scheduler.pt"
#: Settings that `micro_batch_size: auto` decides; the file of the schedule has them.
_OF_PASSES = {"micro_batch_size", "gradient_checkpointing"}
_SCALE = "scaler.pt"
RANDOM_STATES = "random_states.pt"
#: Share of the learning rate at which a schedule with a floor ends, and of the steps in which a constant rate
#: decays.
_FLOOR = 0.1
_DECAY_SHARE = 0.1
#: Names of weights without decay, beside those of layer norms: biases, norms, and a state space's own.
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:$|\.)|(?:^|\.)(?:a_log|d)$")


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Return the forward passes of each process in one optimizer step."""
    rows_a_pass = settings.rows_a_pass(num_processes) * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes"
            f" ({rows_a_pass})"
        )
    return settings.batch_size // rows_a_pass


def place(model: PreTrainedModel, settings: TrainingSettings, num_processes: int) -> torch.nn.Module:
    """Place a model where it is trained, unless it is in parts already; return what makes its forward passes:
    the model, or its wrapper.
    """
    layers.recompute(model, settings)
    if settings.sharding != "none":
        reshard(model)
        return model
    move(model)
    if precision.of(settings) != "fp32":
        _compute_in(model, precision.of(settings))
    if num_processes == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[torch.accelerator.current_device_index()] if torch.accelerator.is_available() else None,
        find_unused_parameters=not settings.gradient_checkpointing,
    )


def _compute_in(model: PreTrainedModel, number_format: precision.Precision) -> None:
    """Have the passes of a model compute in a precision, and return fp32."""
    forward = model.forward

    @wraps(forward)
    def computed(*args: Any, **options: Any) -> Any:
        with precision.autocast(number_format):
            return convert_to_fp32(forward(*args, **options))

    model.forward = computed


def groups_of_weights(model: PreTrainedModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return the trained weights as groups of an optimizer; biases, norms and state spaces have no decay."""
    norms = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)
    )
    betas = {} if settings.betas is None else {"betas": settings.betas}
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": settings.peak_rate, "weight_decay": decay, **betas}
        for decay in (settings.weight_decay, 0.0)
    ]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[0 if (not name.startswith(norms) and not _NOT_DECAYED.search(name.lower())) else 1][
                "params"
            ].append(weight)
    return [group for group in groups if group["params"]]


def share_of_rate(
    settings: TrainingSettings, optimizer: torch.optim.Optimizer, num_steps: int
) -> Callable[[int], float]:
    """Return (steps so far) -> the share of the learning rate that the schedule gives the next step."""
    options = {
        "cosine_with_min_lr": {"min_lr_rate": _FLOOR},
        # A decay that is steep at first (Haegele et al. 2024, arXiv:2405.18392).
        "warmup_stable_decay": {"num_decay_steps": round(_DECAY_SHARE * num_steps), "decay_type": "1-sqrt"},
    }
    schedule: Any = get_scheduler(
        settings.scheduler,
        optimizer,
        round(settings.warmup_share * num_steps),
        num_steps,
        options.get(settings.scheduler),
    )
    return schedule.lr_lambdas[0]


def _pinned(batch: Batch) -> Batch:
    """Return a batch whose copies to an accelerator do not block."""
    is_pinned = device().type != "cpu"
    return {
        name: value.pin_memory() if is_pinned and isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def random_states() -> dict[str, Any]:
    """Return the state of this process's generators, of a GPU that of its own; `torch.load` reads it as
    weights only.
    """
    kind, keys, *more = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), *more),
        "cpu": torch.get_rng_state(),
        # Of any kind of accelerator; checkpoints have it by this name.
        "cuda": None if (rng_state := of_accelerator("get_rng_state")) is None else rng_state(),
    }


def restore_random_states(state: Mapping[str, Any]) -> None:
    """Set the generators back to a `random_states`; a GPU's stays where the state is of a process without
    one.
    """
    kind, keys, *more = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *more))
    torch.set_rng_state(state["cpu"])
    set_rng_state = of_accelerator("set_rng_state")
    if state["cuda"] is not None and set_rng_state is not None:
        set_rng_state(state["cuda"])


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a model, which is not wrapped; all processes that share it must call
    this.

    Raises:
        StoreError: its files are no weights of this model.
    """
    with _reading(checkpoint):
        if is_sharded(model):
            reshard(model)
            Parts(checkpoint).load_weights(model)
        else:
            load_model(model, checkpoint / WEIGHTS)


def passes_of(checkpoint: Path) -> dict[str, Any]:
    """Return the settings that decide the passes of the training that wrote a checkpoint.

    Raises:
        StoreError: see `load_weights`.
    """
    with _reading(checkpoint):
        recorded = torch.load(checkpoint / _SCHEDULE, weights_only=True)
    return {name: recorded[name] for name in _OF_PASSES & recorded.keys()}


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what torch and safetensors raise for a forged file is not defined
        if classify(error) != "unknown" and not isinstance(error, FileNotFoundError):
            raise
        raise StoreError(
            f"{checkpoint}: is whole, but is no checkpoint of this training ({type(error).__name__}); remove"
            " it, from a bucket as well, and run the same command again: it continues from the one before"
        ) from error


def most_unread_steps() -> int:
    """Return the number of steps that may be begun before the loss of the last one is read: an accelerator
    computes meanwhile, and a CPU gains nothing.
    """
    return 0 if device().type == "cpu" else 1


@dataclass(frozen=True)
class Step:
    """An optimizer step that the device may still compute.

    Attributes:
        number: from 1.
    """

    number: int
    learning_rate: float
    _measured: torch.Tensor
    _copied: torch.Event | None

    @classmethod
    def of(cls, number: int, rate: float, loss: torch.Tensor, norm: torch.Tensor) -> "Step":
        """Begin to copy loss and norm to the host."""
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        loss_and_norm = torch.stack([loss, norm.to(loss)]).to("cpu", non_blocking=True)
        copied = None if loss.device.type == "cpu" else torch.Event(loss.device)
        if copied is not None:
            copied.record()
        return cls(number, rate, loss_and_norm, copied)

    def read(self) -> dict[str, Any]:
        """Wait for the step; return its `step`, its mean `loss` over all processes, the `grad_norm` before
        clipping and the `learning_rate`.
        """
        if self._copied is not None:
            self._copied.synchronize()
        loss, norm = self._measured.tolist()
        return {"step": self.number, "loss": loss, "grad_norm": norm, "learning_rate": self.learning_rate}


#: When a training is looked at: after a forward and backward pass, with the gradients that the optimizer is
#: about to use, and after a step.
Moment = Literal["pass", "gradients", "step"]
Watch = Callable[[Moment, "Loop"], None]


class Loop:
    """Trains a model, one optimizer step after the other.

    Args:
        model: complete, with the weights that it begins with, those of the checkpoint if there is one; it is
            placed where it is trained.
        checkpoint: to continue from.
        anchors: pulls that are added to the gradients after clipping.
        watch: called at each `Moment`.

    Attributes:
        step: optimizer steps taken, those before a resume included.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        preparation: Prepared,
        settings: TrainingSettings,
        seed: int,
        *,
        num_processes: int,
        num_steps: int,
        checkpoint: Path | None,
        anchors: Sequence[Anchor],
        watch: Watch,
    ):
        self.model = model
        self.anchors = anchors
        self.step = 0
        self._prepared = preparation
        self._settings = settings
        self._num_processes = num_processes
        self._watch = watch
        self._wrapped: Any = place(model, settings, num_processes)
        self.optimizer = settings.chosen_optimizer.build(
            groups_of_weights(model, settings), settings.weights, seed
        )
        #: The optimizer, if it updates weights in the backward pass.
        self._stepping = cast(LowMemoryOptimizer, self.optimizer) if settings.steps_in_backward else None
        self._share_of_rate = share_of_rate(settings, self.optimizer, num_steps)
        #: Steps so far, as the schedule counts them: fp16 skips steps that overflow.
        self._num_scheduled = 0
        scaler = ShardedGradScaler if is_sharded(model) else torch.amp.GradScaler
        self._scaler = scaler(device().type, enabled=precision.of(settings) == "fp16")
        set_seed(seed)
        # torch's own loader of data draws its seed here.
        torch.empty((), dtype=torch.int64).random_()
        if checkpoint is not None:
            with _reading(checkpoint):
                self._restore(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        self._num_scheduled = torch.load(checkpoint / _SCHEDULE, weights_only=True)["last_epoch"]
        if is_sharded(self.model):
            Parts(checkpoint).load_moments(self.model, self.optimizer)
            for group in self.optimizer.param_groups:
                # Parts have moments alone.
                group["num_steps"] = self._num_scheduled
        else:
            self.optimizer.load_state_dict(
                torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)
            )
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(torch.load(checkpoint / _SCALE, weights_only=True))
        states = torch.load(checkpoint / RANDOM_STATES, weights_only=True)
        # Of another number of processes: they began with the same state, and draw the more differently the
        # longer they train.
        restore_random_states(states[ranks.number() % len(states)])
        self.step = step_of(checkpoint)

    def save(self, folder: Path) -> Callable[[], list[str]]:
        """Begin a checkpoint in a new folder; all processes must call this. Return what writes this process's
        weights and moments into it, while training may go on if they are its part alone, and returns the
        names of these files.
        """
        states = ranks.of_all(random_states())
        # Where each host has all parts, those of the first one are enough.
        is_part = is_sharded(self.model) and not (
            self._settings.sharding == "fsdp2_by_host" and ranks.number() >= num_local_ranks()
        )
        if is_part or is_first_rank():
            folder.mkdir(parents=True, exist_ok=True)
        if is_first_rank():
            self.model.config.save_pretrained(folder)
            torch.save(
                {"last_epoch": self._num_scheduled, **self._settings.model_dump(include=_OF_PASSES)},
                folder / _SCHEDULE,
            )
            if self._scaler.is_enabled():
                torch.save(self._scaler.state_dict(), folder / _SCALE)
            torch.save(states, folder / RANDOM_STATES)
        whole = partial(self._write_whole, folder) if is_first_rank() else list
        return partial(Part(self.model, self.optimizer, ranks.number()).write, folder) if is_part else whole

    def _write_whole(self, folder: Path) -> list[str]:
        save_file(
            {name: value.contiguous() for name, value in weights_of(self.model)},
            folder / WEIGHTS,
            {"format": "pt"},
        )
        torch.save(self.optimizer.state_dict(), folder / _OPTIMIZER)
        return [WEIGHTS, _OPTIMIZER]

    def steps(self) -> Iterator[Step]:
        """Take the steps that are missing, and yield each; nothing waits for the device."""
        feed = self._prepared.feed
        count = self._num_processes
        num_passes = accumulation_steps(self._settings, count)
        numbers = range(
            (self.step * num_passes * count + ranks.number()), -(-feed.num_passes // count) * count, count
        )
        last = feed.num_passes - 1
        for start in range(0, len(numbers), num_passes):
            # Processes make equally many passes: one for which there is none repeats the last, for nothing.
            yield self._take_step(
                [
                    (_pinned(feed.batch(min(number, last))), number <= last)
                    for number in numbers[start : start + num_passes]
                ]
            )

    def _take_step(self, passes: Sequence[tuple[Batch, bool]]) -> Step:
        """Take a step over passes; of each, whether it counts."""
        rate = self._settings.peak_rate * self._share_of_rate(self._num_scheduled)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        num_labels = torch.stack([(batch["labels"] != IGNORED).sum() * counts for batch, counts in passes])
        # A step may have nothing to learn from, such as prompts alone.
        num_labels = ranks.total(to_device(num_labels.sum())).float().clamp(min=1)
        loss = torch.zeros((), device=device())
        for number, (batch, counts) in enumerate(passes, start=1):
            # A sharded model would else keep the complete gradients until the last pass.
            with (
                self._wrapped.no_sync()
                if (isinstance(self._wrapped, DistributedDataParallel) and number < len(passes))
                else nullcontext()
            ):
                # Gradients are averaged over the processes, while the labels are counted over all of them.
                loss += self._make_pass(batch, num_labels, self._num_processes if counts else 0)
            self._watch("pass", self)
        norm = self._clip()
        for anchor in self.anchors:
            anchor.pull(self.model)
        self._watch("gradients", self)
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._num_scheduled += self._scaler.get_scale() >= scale
        self.model.zero_grad()
        self.step += 1
        self._watch("step", self)
        return Step.of(self.step, rate, ranks.total(loss) / self._num_processes, norm)

    def _make_pass(self, batch: Batch, num_labels: torch.Tensor, factor: int) -> torch.Tensor:
        inputs = {name: to_device(value) for name, value in batch.items()}
        labels = inputs.pop("labels")
        with self._stepping.updating() if self._stepping is not None else nullcontext():
            loss = self._prepared.total_loss(self._wrapped, inputs, labels) / num_labels * factor
            self._scaler.scale(loss).backward()
        return loss.detach()

    def _clip(self) -> torch.Tensor:
        """Clip the gradients to the norm of the settings; return their norm before that."""
        if self._stepping is not None:
            return self._stepping.norm
        self._scaler.unscale_(self.optimizer)
        return clip_grad_norm_(self.model.parameters(), self._settings.max_grad_norm)
