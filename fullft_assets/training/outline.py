"""The memory of a training step, counted without weights, without data on a device, and without the device.

The recipe's own code runs on fake tensors: forward pass, backward pass and optimizer make the same tensors as
in training, and each one's storage is counted from the operation that makes it until nothing refers to it any
more. So activations, logits and temporary tensors are those of the model as it is written, and no formula for
an architecture is needed.
"""

from __future__ import annotations

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

from fullft_assets.errors import FullftError
from fullft_assets.models import layers, loading
from fullft_assets.models.precision import Precision
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.planning.measurements import StepMemory, Work
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import optimizers
from fullft_assets.training.recipe import Prepared, Recipe
from fullft_assets.training.throughput import ModelShape, step_flops

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
#: Elements that low-memory optimizers update at a time, by whether on a GPU; on a CPU fewer, which take next
#: to no memory and long to count.
_CHUNK = {True: 2**24, False: 2**20}
#: The C library takes larger blocks from the system and gives them back (its largest `M_MMAP_THRESHOLD`).
_SMALL_BYTES = 2**25
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
        self._recipe, self._settings, self._seed = recipe, settings, seed
        self._found: dict[str, StepMemory] = {}

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
        if key not in self._found:
            with _in_one_line():
                self._found[key] = _count(
                    self._recipe, settings, self._seed, precision, is_gpu=is_gpu, num_passes=num_passes
                )
        return self._found[key]


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
        tracker.expect_casts(model.parameters())
        own = tracker.live
        prepared = recipe.prepare(model, settings, seed, 1)
        pulls = _pulls(recipe, settings)
        copies = tracker.live - own
        model.train()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
    # Outside of the mode, where tensors have values.
    batch = prepared.feed.batch(int(np.argmax(prepared.feed.sizes)))
    tracker.expect(batch["labels"], vocabulary=_vocabulary(model))
    with fake, tracker:
        tracker.keep_all()
        step = _Step(
            model,
            prepared,
            settings,
            {name: fake.from_tensor(value) for name, value in batch.items()},
            _CHUNK[is_gpu],
        )
        if not settings.steps_in_backward:
            for weight in step.weights:
                weight.register_post_accumulate_grad_hook(
                    lambda weight: tracker.keep([cast(torch.Tensor, weight.grad)])
                )
        step.make_moments()
        tracker.keep_all()
        tracker.keep(step.batch.values())
        tracker.start_again()
        step.make(num_passes, lambda: autocast(precision, is_gpu=is_gpu))
    del pulls
    weights, buffers = _bytes(model.parameters()), _bytes(model.buffers())
    return StepMemory(
        weights=weights,
        buffers=buffers,
        gradients=0 if settings.steps_in_backward else _bytes(step.weights),
        moments=step.moments,
        copies=copies,
        largest_layer=_largest_layer(model),
        logits=tracker.logits,
        activations=tracker.passing - tracker.logits,
        peak=tracker.peak,
        small=tracker.small,
        is_recomputed=settings.gradient_checkpointing,
    )


class _Step:
    """Makes optimizer steps as the trainer does, on one batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        prepared: Prepared,
        settings: TrainingSettings,
        batch: dict[str, torch.Tensor],
        chunk: int,
    ):
        self._model, self._prepared, self.batch = model, prepared, batch
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._eight_bit: list[torch.Tensor] = []
        self._optimizer = None
        if settings.optimizer != "adamw_8bit":
            self._optimizer = optimizers.build(
                [{"params": self.weights, "lr": 0.0, "weight_decay": 0.0}], settings, 0, chunk
            )

    @property
    def moments(self) -> int:
        """Bytes of the optimizer's state."""
        states = [] if self._optimizer is None else self._optimizer.state.values()
        held = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        return _bytes([*held, *self._eight_bit])

    def make_moments(self) -> None:
        """Make what the optimizer keeps from step to step."""
        optimizer = self._optimizer
        if optimizer is None:
            # bitsandbytes works on values alone. Its state is two bytes a weight, and its step makes no
            # temporary tensor.
            self._eight_bit = [
                torch.empty(weight.shape, dtype=torch.uint8) for weight in self.weights for _ in range(2)
            ]
            return
        for weight in self.weights:
            weight.grad = torch.empty_like(weight)
        in_backward = isinstance(optimizer, optimizers.LowMemoryOptimizer) and optimizer.in_backward
        if isinstance(optimizer, optimizers.LowMemoryOptimizer):
            optimizer.in_backward = False
        optimizer.step()
        if isinstance(optimizer, optimizers.LowMemoryOptimizer):
            optimizer.in_backward = in_backward
        self._drop_gradients()

    def make(self, num_passes: int, computing: Callable[[], AbstractContextManager[Any]]) -> None:
        """Make one optimizer step of so many passes."""
        optimizer = self._optimizer
        if isinstance(optimizer, optimizers.LowMemoryOptimizer) and optimizer.in_backward:
            with optimizer.updating():
                self._pass(computing)
            return
        for _ in range(num_passes):
            self._pass(computing)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        if optimizer is not None:
            optimizer.step()
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def _pass(self, computing: Callable[[], AbstractContextManager[Any]]) -> None:
        inputs = dict(self.batch)
        labels = inputs.pop("labels")
        with computing():
            loss = self._prepared.total_loss(self._model, inputs, labels) / max(1, labels.numel())
        loss.backward()


@dataclass
class _Held:
    """A counted storage: its bytes, whether it passes with the step, whether it has logits, and whether it
    leaves a gap where it was.
    """

    storage: weakref.ref[Any]
    size: int
    passes: bool
    is_logits: bool
    is_small: bool


class _Tracker(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until nothing refers to them any more.

    Attributes:
        live: bytes that exist.
        peak: most that existed since the start.
        passing: most of them that are neither kept from step to step nor gradients.
        logits: those of `passing` that are as wide as the vocabulary.
        small: those of `passing` in storages of less than `_SMALL_BYTES`, without the copies of weights that
            autocast makes: they come and go together, and leave no gaps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self._passing = self._logits = self._small = 0
        self._vocabulary = 0
        self._held: dict[int, _Held] = {}
        self._num_selected: dict[tuple[int, ...], int] = {}
        self._weights: set[int] = set()
        self.start_again()

    def start_again(self) -> None:
        """Forget the peaks."""
        self.peak = self.passing = self.logits = self.small = 0

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors as kept, whether they are counted already or not."""
        for tensor in tensors:
            self._add(tensor)
            self._keep(self._held[id(tensor.untyped_storage())])

    def keep_all(self) -> None:
        """Count all tensors that exist as kept."""
        for held in self._held.values():
            self._keep(held)

    def _keep(self, held: _Held) -> None:
        if held.passes:
            held.passes = False
            self._passing -= held.size
            self._logits -= held.size if held.is_logits else 0
            self._small -= held.size if held.is_small else 0

    def expect(self, labels: torch.Tensor, *, vocabulary: int) -> None:
        """Take what fake tensors do not know: how many tokens a mask of the trained ones selects."""
        self._vocabulary = vocabulary
        for values in (labels, labels[:, 1:]) if labels.dim() > 1 else (labels,):
            self._num_selected[tuple(values.shape)] = int((values != IGNORED).sum())

    def expect_casts(self, weights: Iterable[torch.Tensor]) -> None:
        """Take the weights, whose copies in another format do not count as small."""
        self._weights = {id(weight.untyped_storage()) for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._selected(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        is_cast = func is _aten._to_copy.default and id(args[0].untyped_storage()) in self._weights
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value, is_cast=is_cast)
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

    def _add(self, tensor: torch.Tensor, *, is_cast: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._held:
            return
        is_logits = self._vocabulary > 0 and tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary
        is_small = storage.nbytes() < _SMALL_BYTES and not is_cast
        held = _Held(
            weakref.ref(storage, lambda _: self._remove(key)), storage.nbytes(), True, is_logits, is_small
        )
        self._held[key] = held
        self.live += held.size
        self._passing += held.size
        self._logits += held.size if is_logits else 0
        self._small += held.size if held.is_small else 0
        self.peak = max(self.peak, self.live)
        if self._passing > self.passing:
            self.passing, self.logits, self.small = self._passing, self._logits, self._small

    def _remove(self, key: int) -> None:
        held = self._held.pop(key)
        self._keep(held)
        self.live -= held.size


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
    if precision in ("fp32", "tf32"):
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


def _vocabulary(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    return 0 if head is None else int(cast(torch.Tensor, head.weight).shape[0])


def _largest_layer(model: PreTrainedModel) -> int:
    names = dict(model.named_parameters())
    count, sizes = layers.num_layers(names), defaultdict[int, int](int)
    for name, weight in names.items():
        sizes[layers.depth(name, count)] += weight.numel() * weight.element_size()
    return max(sizes.values())


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
