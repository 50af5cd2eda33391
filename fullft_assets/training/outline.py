"""The memory of a training step, counted without weights, without data on a device, and without the device.

The recipe's own code runs on fake tensors: forward and backward pass make the same tensors as in training,
and each one's storage is counted from the operation that makes it until nothing refers to it any more. So
activations, logits and temporary tensors are those of the model as it is written, and no formula for an
architecture is needed. What an optimizer keeps of each weight it says itself. The plan on this machine and on
others follows from it.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import numpy as np
import psutil
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

from fullft_assets.errors import FullftError
from fullft_assets.models import layers, loading, precision
from fullft_assets.models.hardware import gpu_name, memory_limit, num_gpus, peak_flops
from fullft_assets.models.precision import Precision
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.planning.metadata import StepMemory, Work
from fullft_assets.planning.targets import (
    Extent,
    Target,
    TargetPlan,
    plan_targets,
    rung_table,
)
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.training.recipe import Recipe
from fullft_assets.training.recorder import ModelShape, step_flops

#: Functions that autocast on a GPU computes in fp32, whose results and saved inputs are twice as large; on a
#: CPU it does not.
_FP32_ON_GPUS = (
    functional.layer_norm,
    functional.softmax,
    functional.log_softmax,
    torch.rsqrt,
    torch.pow,
    torch.Tensor.pow,
)
_aten: Any = torch.ops.aten


class CannotCount(Exception):
    """A model asks for values of tensors, which there are not without weights; the message says where."""


class Outline:
    """A training without weights: its memory under several settings, and its work.

    Args:
        recipe: of the training.
        settings: of the training; `memory` takes others.
    """

    def __init__(self, recipe: Recipe, settings: TrainingSettings, seed: int):
        self._recipe = recipe
        self._settings = settings
        self._seed = seed
        self._counted: dict[str, StepMemory] = {}

    def work(self) -> Work:
        """Return what the training computes.

        Raises:
            CannotCount: see there.
        """
        with _in_one_line(), loading.without_weights():
            model = self._recipe.load(self._settings)
            layers.freeze(model, self._settings)
            feed = self._recipe.prepare(model, self._settings, self._seed, 1).feed
            shape = ModelShape.of(model)
        flops = step_flops(feed.lengths, feed.num_predicted, np.array([0, len(feed.lengths)]), shape)
        return Work(
            num_parameters=model.num_parameters(),
            num_trained_parameters=model.num_parameters(only_trainable=True),
            num_rows=feed.num_rows,
            num_tokens=int(feed.lengths.sum()),
            num_padded_tokens=int(feed.sizes.sum()),
            flops=float(flops.sum()),
        )

    def memory(
        self, settings: TrainingSettings, precision: Precision, *, is_gpu: bool, processes: int = 1
    ) -> StepMemory:
        """Return the memory of the largest step under these settings.

        Args:
            precision: that the device computes in.
            is_gpu: whether autocast follows the rules of GPUs.
            processes: that share the passes of a batch.

        Raises:
            CannotCount: see there.
        """
        num_passes = 2 if settings.batch_size > settings.micro_batch_size * processes else 1
        # What does not change the tensors of a step: the formats that only some GPUs compute in take the same
        # memory as these.
        settings = settings.model_copy(
            update={"precision": "auto", "compile": False, "sharding": "none", "epochs": 1.0}
        )
        key = (
            settings.model_dump_json(exclude={"batch_size"})
            + f" {precision} {is_gpu and precision != 'fp32'} {num_passes}"
        )
        if key not in self._counted:
            with _in_one_line():
                self._counted[key] = _count(
                    self._recipe, settings, self._seed, precision, is_gpu=is_gpu, num_passes=num_passes
                )
        return self._counted[key]


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        # Weights that are not drawn must not change those that are drawn later.
        with torch.random.fork_rng(), warnings.catch_warnings():
            # They were said, or will be, where the model is trained.
            warnings.simplefilter("ignore")
            yield
    except FullftError:
        raise
    except Exception as error:
        # A model's own code may fail in any way on tensors without values.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CannotCount(f"the model cannot be counted without its weights ({reason})") from error


def _count(
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
    precision: Precision,
    *,
    is_gpu: bool,
    num_passes: int,
) -> StepMemory:
    tracker = _Tracker()
    with loading.without_weights() as fake, tracker:
        model = recipe.load(settings)
        layers.freeze(model, settings)
        tracker.keep([*model.parameters(), *model.buffers()])
        weight_bytes = tracker.live
        prepared = recipe.prepare(model, settings, seed, 1)
        pulls = _pulls(recipe, settings)
        copies = tracker.live - weight_bytes
        model.train()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
    # Outside of the mode, where tensors have values.
    batch = prepared.feed.batch(int(np.argmax(prepared.feed.sizes)))
    tracker.expect(batch["labels"])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with fake, tracker:
        inputs = {name: fake.from_tensor(value) for name, value in batch.items()}
        labels = inputs["labels"]
        for weight in trained:
            weight.register_post_accumulate_grad_hook(
                _free_gradient if settings.steps_in_backward else lambda weight: tracker.keep([weight.grad])
            )
        tracker.keep_all()
        tracker.start_again()
        for _ in range(1 if settings.steps_in_backward else num_passes):
            values = {name: value for name, value in inputs.items() if name != "labels"}
            with autocast(precision, is_gpu=is_gpu):
                loss = prepared.total_loss(model, values, labels) / max(1, labels.numel())
            loss.backward()
    del pulls
    moments = settings.chosen_optimizer.state_bytes(settings.weights) * sum(
        weight.numel() for weight in trained
    )
    return StepMemory(
        weights=_bytes(model.parameters()),
        buffers=_bytes(model.buffers()),
        gradients=0 if settings.steps_in_backward else _bytes(trained),
        moments=moments,
        copies=copies,
        largest_layer=_largest_layer(model),
        activations=tracker.passing,
        peak=tracker.peak + moments,
    )


def _free_gradient(weight: torch.Tensor) -> None:
    weight.grad = None


class _Tracker(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until nothing refers to them any more.

    Attributes:
        live: bytes that exist.
        peak: most that existed since the start.
        passing: most of them that are neither kept from step to step nor gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self._passing = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        #: Of the storages that pass with the step.
        self._sizes: dict[int, int] = {}
        self._num_selected: dict[tuple[int, ...], int] = {}
        self.start_again()

    def start_again(self) -> None:
        """Forget the peaks."""
        self.peak = self.passing = 0

    def keep(self, tensors: Iterable[torch.Tensor | None]) -> None:
        """Count tensors as kept, whether they are counted already or not."""
        for tensor in tensors:
            assert tensor is not None, "torch calls the hook with the gradient in place"
            self._add(tensor)
            self._keep(id(tensor.untyped_storage()))

    def keep_all(self) -> None:
        """Count all tensors that exist as kept."""
        for key in list(self._sizes):
            self._keep(key)

    def _keep(self, key: int) -> None:
        self._passing -= self._sizes.pop(key, 0)

    def expect(self, labels: torch.Tensor) -> None:
        """Take what fake tensors do not know: how many tokens a mask of the trained ones selects."""
        for values in (labels, labels[:, 1:]) if labels.dim() > 1 else (labels,):
            self._num_selected[tuple(values.shape)] = int((values != IGNORED).sum())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._selected(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return result

    def _selected(self, func: Any, args: Any) -> torch.Tensor | None:
        """Return the result of indexing with a mask, whose size depends on values; None for every other
        operation.
        """
        if func not in (
            _aten.index.Tensor,
            _aten.index_put_.default,
            _aten.index_put.default,
            _aten._index_put_impl_.default,
        ):
            return None
        table, (mask, *others) = args[0], args[1]
        if others or mask is None or mask.dtype != torch.bool:
            return None
        if func is _aten.index.Tensor:
            # Without better knowledge all are selected, which takes the most memory.
            count = self._num_selected.get(tuple(mask.shape), mask.numel())
            return table.new_empty((count, *table.shape[mask.dim() :]))
        return torch.empty_like(table) if func is _aten.index_put.default else table

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = weakref.ref(storage, lambda _: self._remove(key, size))
        self._sizes[key] = size
        self.live += size
        self._passing += size
        self.peak = max(self.peak, self.live)
        self.passing = max(self.passing, self._passing)

    def _remove(self, key: int, size: int) -> None:
        del self._storages[key]
        self._keep(key)
        self.live -= size


class _Fp32OnGpus(TorchFunctionMode):
    """Computes in fp32 what autocast on a GPU would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FP32_ON_GPUS:
            args = tree_map(
                lambda value: (
                    value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
                ),
                args,
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast(precision: Precision, *, is_gpu: bool) -> Iterator[None]:
    """Context in which fake tensors get the formats that they would have on the device."""
    if precision == "fp32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16), _Fp32OnGpus() if is_gpu else nullcontext():
        yield


def _pulls(recipe: Recipe, settings: TrainingSettings) -> list[Any]:
    """Return tensors as large as those that `regularization.anchors` keeps."""
    if not settings.l2_sp and not settings.ewc:
        return []
    original = recipe.load_original(settings)
    importance = [torch.zeros_like(weight) for weight in original.parameters()] if settings.ewc else []
    return [original, importance]


def _largest_layer(model: PreTrainedModel) -> int:
    names = dict(model.named_parameters())
    count, sizes = layers.num_layers(names), defaultdict[int, int](int)
    for name, weight in names.items():
        sizes[layers.depth(name, count)] += weight.numel() * weight.element_size()
    return max(sizes.values())


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


#: Operations a second that training reaches on one CPU core (MiniLM in fp32 reached 70e9).
_CPU_CORE_FLOPS = 60e9
#: How far a CPU's speed strays from what is assumed of it.
_CPU_SPREAD = (0.4, 1.5)


class TargetPlanner:
    """Plans a training on machines that are not there.

    Args:
        num_held_out_rows: validation and test rows.
    """

    def __init__(self, recipe: Recipe, settings: UseCaseSettings, num_held_out_rows: int):
        self._settings = settings = settings.with_epochs(recipe.num_rows)
        self._outline = Outline(recipe, settings.training, settings.seed)
        self._num_rows, self._num_held_out_rows = recipe.num_rows, num_held_out_rows

    def work(self) -> Work:
        """Return what the training computes.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        return self._outline.work()

    def plans(self, measured_speed: float | None) -> list[TargetPlan]:
        """Return the plan on each target, this machine first.

        Args:
            measured_speed: useful FLOP/s that a training of this use case reached here. Default: an
                assumption.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        here = this_machine(self._settings, measured_speed)
        return plan_targets(
            self._settings,
            here,
            self._extent(),
            self._count,
            here_precision=precision.of(self._settings.training),
        )

    def rungs(self) -> list[dict[str, str]]:
        """Return the memory of a process on a GPU at each rung of the memory ladder, a row of text each.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        return rung_table(self._settings.training, self._count)

    def _extent(self) -> Extent:
        return Extent(
            work=self.work(), num_training_rows=self._num_rows, num_held_out_rows=self._num_held_out_rows
        )

    def _count(
        self, settings: TrainingSettings, computed_in: str, is_gpu: bool, processes: int
    ) -> StepMemory:
        return self._outline.memory(
            settings, cast(Precision, computed_in), is_gpu=is_gpu, processes=processes
        )


def this_machine(settings: UseCaseSettings, measured_speed: float | None) -> Target:
    """Return this machine: its GPU, or its CPU, with the memory that is free on it now."""
    name = gpu_name()
    hourly_usd = settings.planning.hourly_usd
    speed = None if measured_speed is None else (measured_speed, measured_speed)
    if name is not None:
        computed_in: Literal["bf16", "fp16"] = "bf16"
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        return Target(
            name="this machine",
            gpu=name,
            gpus=num_gpus(),
            memory_bytes=free,
            flops=peak_flops(name, computed_in),
            speed=speed,
            is_measured=speed is not None,
            hourly_usd=hourly_usd,
            kind="here",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assumed = cores * _CPU_CORE_FLOPS
    return Target(
        name=f"this machine ({os.cpu_count()} CPUs)",
        memory_bytes=memory_limit(),
        libraries_bytes=psutil.Process().memory_info().rss,
        speed=speed or (_CPU_SPREAD[0] * assumed, _CPU_SPREAD[1] * assumed),
        is_measured=speed is not None,
        hourly_usd=hourly_usd,
        kind="here",
    )
