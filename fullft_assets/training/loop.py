"""The training loop: where a model is placed, its optimizer steps, and what a checkpoint contains.

Several processes have a copy of the model each (DDP), or a part of its weights, gradients and moments each
(FSDP2).
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import convert_to_fp32
from safetensors.torch import load_model, save_file
from torch import nn
from torch.distributed import fsdp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, get_scheduler, set_seed

from fullft_assets.errors import SettingsError
from fullft_assets.jobs.ranks import is_first_rank
from fullft_assets.models import precision
from fullft_assets.models.inference import device, is_sharded, move
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks
from fullft_assets.training.checkpoints import step_of
from fullft_assets.training.feed import Batch
from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer
from fullft_assets.training.recipe import Prepared
from fullft_assets.training.regularization import Anchor

#: Files of a checkpoint: the complete weights; the optimizer's state, of a sharded one by the names of
#: weights; how often the rate was changed; the loss scale of fp16; each process's generators, by rank.
WEIGHTS = "model.safetensors"
_OPTIMIZER, _SHARDED_OPTIMIZER = "optimizer.pt", "optimizer.bin"
_SCHEDULE, _SCALE = "scheduler.pt", "scaler.pt"
RANDOM_STATES = "random_states.pt"
#: How long a process waits for the others.
_PATIENCE = timedelta(minutes=30)
#: Names of weights without decay, beside those of layer norms: biases, norms, and a state space's own.
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:$|\.)|(?:^|\.)(?:a_log|d)$")
#: Complete states: another number of processes can continue with them.
_COMPLETE: dict[str, Any] = {"full_state_dict": True, "cpu_offload": True}


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Return the forward passes of each process in one optimizer step."""
    rows_a_pass = settings.micro_batch_size * num_processes
    if settings.batch_size % rows_a_pass:
        raise SettingsError(
            f"training.batch_size: {settings.batch_size} is not a multiple of micro_batch_size x processes"
            f" ({rows_a_pass})"
        )
    return settings.batch_size // rows_a_pass


def connect_processes(settings: TrainingSettings) -> None:
    """Connect the processes of a training, if there are several."""
    # The norm of gradients in the host's memory is summed there, which NCCL cannot do.
    needs_both = settings.sharding == "fsdp2_offload" and torch.cuda.is_available()
    PartialState(
        cpu=not torch.cuda.is_available(),
        backend="cuda:nccl,cpu:gloo" if needs_both else None,
        timeout=_PATIENCE,
    )


def place(model: PreTrainedModel, settings: TrainingSettings, num_processes: int) -> nn.Module:
    """Place a model where it is trained; return what makes its forward passes: the model, or its wrapper."""
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    chosen = precision.of(settings)
    if settings.sharding != "none":
        _shard(model, settings, chosen)
        return model
    move(model)
    if chosen != "fp32":
        _compute_in(model, chosen)
    if num_processes == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[torch.cuda.current_device()] if torch.cuda.is_available() else None,
        find_unused_parameters=not settings.gradient_checkpointing,
    )


def _shard(model: PreTrainedModel, settings: TrainingSettings, chosen: precision.Precision) -> None:
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[chosen]
    # Sums over processes, and what the model returns, such as a summed loss, would lose digits.
    policy = fsdp.MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mp_policy": policy}
    if settings.sharding == "fsdp2_offload":
        # Pinned memory is for copies to a card.
        options["offload_policy"] = fsdp.CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    names = _units(model)
    for module in reversed(list(model.modules())):
        if type(module).__name__ in names:
            fsdp.fully_shard(module, **options)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        fsdp.fully_shard(embeddings, **options)
    options["mp_policy"] = replace(policy, output_dtype=torch.float32)
    fsdp.fully_shard(model, **options)


def _units(model: PreTrainedModel) -> list[str]:
    """Return the classes whose modules are gathered as one unit.

    A model names them itself; BERT also names the module around its word embeddings, which are a unit of
    their own, or belong to the model's unit where they are the output head, too.
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


def _compute_in(model: PreTrainedModel, chosen: precision.Precision) -> None:
    """Have the passes of a model compute in a precision, and return fp32."""
    forward = model.forward

    @wraps(forward)
    def computed(*args: Any, **options: Any) -> Any:
        with precision.autocast(chosen):
            output = forward(*args, **options)
        return convert_to_fp32(output)

    model.forward = computed


def groups_of_weights(model: PreTrainedModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return the trained weights as groups of an optimizer; biases, norms and state spaces have no decay."""
    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": settings.learning_rate, "weight_decay": decay}
        for decay in (settings.weight_decay, 0.0)
    ]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            has_decay = not name.startswith(norms) and not _NOT_DECAYED.search(name.lower())
            groups[0 if has_decay else 1]["params"].append(weight)
    return [group for group in groups if group["params"]]


def ahead(collate: Callable[[int], Batch], numbers: Iterable[int], depth: int) -> Iterator[Batch]:
    """Yield the batch of each of these passes; a thread collates the next ones meanwhile.

    It uses a thread and not a process: a thread shares the arrays and ends with this process, whatever ends
    it. It draws no random number.

    Args:
        depth: passes collated ahead; a step asks for all of its passes at once.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    waiting: deque[Future[Batch]] = deque()

    def collated(number: int) -> Batch:
        batch = collate(number)
        # Copies from pinned memory do not block.
        has_gpu = device().type == "cuda"
        return {name: value.pin_memory() for name, value in batch.items()} if has_gpu else batch

    try:
        for number in numbers:
            waiting.append(thread.submit(collated, number))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


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
    """Set the generators back to a `random_states`; a GPU's stays where the state is of a process without
    one.
    """
    kind, keys, *more = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *more))
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a complete model, which is not wrapped."""
    load_model(model, checkpoint / WEIGHTS)


def complete_model(model: PreTrainedModel, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Return a model as one process holds it; a sharded one is gathered, for which all processes must call
    this.

    Args:
        make: loads the same model, untrained. Only the first process gets trained weights.
    """
    if not is_sharded(model):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(**_COMPLETE))
    gathered = make()
    if weights:
        gathered.load_state_dict(weights)
    return gathered


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
        prepared: Prepared,
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
        self._prepared = prepared
        self._settings = settings
        self._num_processes = num_processes
        self._watch = watch
        self._wrapped: Any = place(model, settings, num_processes)
        self.optimizer = settings.chosen_optimizer.build(
            groups_of_weights(model, settings), settings.weights, settings.max_grad_norm, seed
        )
        #: The optimizer, if it updates weights in the backward pass.
        self._stepping = cast(LowMemoryOptimizer, self.optimizer) if settings.steps_in_backward else None
        warmup = round(settings.warmup_share * num_steps)
        schedule: Any = get_scheduler(settings.scheduler, self.optimizer, warmup, num_steps)
        self._share_of_rate: Callable[[int], float] = schedule.lr_lambdas[0]
        #: Steps so far, as the schedule counts them: fp16 skips steps that overflow.
        self._num_scheduled = 0
        scaler = ShardedGradScaler if is_sharded(model) else torch.amp.GradScaler
        self._scaler = scaler(enabled=precision.of(settings) == "fp16")
        set_seed(seed)
        # torch's own loader of data draws its seed here.
        torch.empty((), dtype=torch.int64).random_()
        if checkpoint is not None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        if is_sharded(self.model):
            state = torch.load(checkpoint / _SHARDED_OPTIMIZER, weights_only=True) if is_first_rank() else {}
            options = StateDictOptions(**_COMPLETE, broadcast_from_rank0=True)
            set_optimizer_state_dict(self.model, self.optimizer, state, options=options)
        else:
            state = torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)
        self._num_scheduled = torch.load(checkpoint / _SCHEDULE, weights_only=True)["last_epoch"]
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(torch.load(checkpoint / _SCALE, weights_only=True))
        states = torch.load(checkpoint / RANDOM_STATES, weights_only=True)
        # Of another number of processes: they began with the same state, and draw the more differently the
        # longer they train.
        restore_random_states(states[ranks.number() % len(states)])
        self.step = step_of(checkpoint)

    def save(self, folder: Path) -> None:
        """Write a checkpoint into a new folder; all processes must call this, and the first one writes."""
        model, optimizer = self.model, self.optimizer
        weights: dict[str, Any]
        if is_sharded(model):
            options = StateDictOptions(**_COMPLETE)
            weights = get_model_state_dict(model, options=options)
            state = get_optimizer_state_dict(model, optimizer, options=options)
        else:
            weights, state = model.state_dict(), optimizer.state_dict()
        states = ranks.of_all(random_states())
        if not is_first_rank():
            return
        folder.mkdir(parents=True)
        model.config.save_pretrained(folder)
        # Tied weights are written once.
        tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters())
        weights = {name: value.contiguous() for name, value in weights.items() if name not in tied}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        torch.save(state, folder / (_SHARDED_OPTIMIZER if is_sharded(model) else _OPTIMIZER))
        torch.save({"last_epoch": self._num_scheduled}, folder / _SCHEDULE)
        if self._scaler.is_enabled():
            torch.save(self._scaler.state_dict(), folder / _SCALE)
        torch.save(states, folder / RANDOM_STATES)

    def steps(self) -> Iterator[dict[str, Any]]:
        """Take the steps that are missing; after each yield its `step` from 1, its mean `loss` over all
        processes, the `grad_norm` before clipping and the `learning_rate`.
        """
        feed, count = self._prepared.feed, self._num_processes
        num_passes = accumulation_steps(self._settings, count)
        first = self.step * num_passes * count + ranks.number()
        numbers = range(first, -(-feed.num_passes // count) * count, count)
        last = feed.num_passes - 1
        batches = ahead(lambda number: feed.batch(min(number, last)), numbers, num_passes)
        # Processes make equally many passes: one for which there is none repeats the last, for nothing.
        passes = zip(batches, (number <= last for number in numbers), strict=True)
        while passes_of_step := list(islice(passes, num_passes)):
            yield self._take_step(passes_of_step)

    def _take_step(self, passes: Sequence[tuple[Batch, bool]]) -> dict[str, Any]:
        """Take a step over passes; of each, whether it counts."""
        rate = self._settings.learning_rate * self._share_of_rate(self._num_scheduled)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        num_labels = torch.stack([(batch["labels"] != IGNORED).sum() * counts for batch, counts in passes])
        # A step may have nothing to learn from, such as prompts alone.
        num_labels = ranks.total(num_labels.sum().to(device())).float().clamp(min=1)
        loss = torch.zeros((), device=device())
        for number, (batch, counts) in enumerate(passes, start=1):
            # A sharded model would else keep the complete gradients until the last pass.
            waits = isinstance(self._wrapped, DistributedDataParallel) and number < len(passes)
            with self._wrapped.no_sync() if waits else nullcontext():
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
        mean_loss = (ranks.total(loss) / self._num_processes).item()
        return {"step": self.step, "loss": mean_loss, "grad_norm": norm.item(), "learning_rate": rate}

    def _make_pass(self, batch: Batch, num_labels: torch.Tensor, factor: int) -> torch.Tensor:
        """Make a forward and backward pass, which an optimizer in the backward pass may need twice; return
        its share of the step's loss.
        """
        inputs = {name: value.to(device(), non_blocking=True) for name, value in batch.items()}
        labels = inputs.pop("labels")

        def compute() -> torch.Tensor:
            loss = self._prepared.total_loss(self._wrapped, inputs, labels) / num_labels * factor
            self._scaler.scale(loss).backward()
            return loss.detach()

        if self._stepping is None:
            return compute()
        if self._stepping.measures_first:
            # The same pass twice: dropout has to draw the same numbers.
            state = random_states()
            with self._stepping.measuring():
                compute()
            restore_random_states(state)
        with self._stepping.updating():
            return compute()

    def _clip(self) -> torch.Tensor:
        """Clip the gradients to the norm of the settings; return their norm before that."""
        if self._stepping is not None:
            return self._stepping.norm
        self._scaler.unscale_(self.optimizer)
        return clip_grad_norm_(self.model.parameters(), self._settings.max_grad_norm)
