"""What a training takes: real passes of the sizes that occur, timed on the training machine, and their peak
memory; and the memory of a step, counted without weights, without data on a device, and without the device.

To count, the recipe's own code runs on fake tensors: forward and backward pass make the same tensors as in
training, and each one's storage is counted from the operation that makes it until nothing refers to it any
more. So activations, logits and temporary tensors are those of the model as it is written, and no formula for
an architecture is needed. What an optimizer keeps of each weight it says itself. The plan on this machine and
on others follows from it.
"""

import math
import os
import platform
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
import psutil
import torch
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PretrainedConfig, PreTrainedModel

from fullft_assets.errors import FullftError
from fullft_assets.models import layers, loading, precision
from fullft_assets.models.hardware import (
    gpu_name,
    memory_limit,
    num_gpus,
    of_accelerator,
    peak_flops,
    peak_memory_bytes,
)
from fullft_assets.models.inference import PLANNED_DEVICE, to_device
from fullft_assets.planning import Measured
from fullft_assets.planning.metadata import StepMemory, Work
from fullft_assets.planning.plan import GIB, copies_bytes
from fullft_assets.planning.targets import (
    Target,
    TargetPlan,
    passes,
    peak_bytes,
    plan_targets,
    shares,
)
from fullft_assets.progress import Progress
from fullft_assets.ranks import is_first_rank, num_local_ranks
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.settings.optimizers import bytes_per_weight
from fullft_assets.training import kernels, ranks, regularization, sharding
from fullft_assets.training.loop import accumulation_steps, place
from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer
from fullft_assets.training.recipe import Prepared, Recipe
from fullft_assets.training.recorder import ModelShape, step_flops

#: Passes that are timed, spread over the sizes that occur. With the first one, which is not, they are eight
#: steps: memory grows for some.
_TIMED_PASSES = 7
#: A training's peak was up to 7% above that of the same passes alone: logs, checkpoints and the memory's
#: pieces come on top.
_MEMORY_MARGIN = 1.08


def measure(recipe: Recipe, use_case: UseCaseSettings, processes: int) -> tuple[Measured, dict[str, Any]]:
    """Time real training passes of the sizes that occur and predict the time of the complete run from them.

    Loading, scoring the validation rows and writing checkpoints are not included. Processes that share the
    model make the passes together, each on the same rows, and the largest memory of them counts.

    Args:
        recipe: the task's, with the rows that train.
        use_case: the settings.
        processes: that share the model; 1 if this process holds all of it.

    Returns:
        The measurements, and what the recipe reports about the training.
    """
    if processes > 1:
        ranks.connect()
    settings = with_fitting_passes(
        recipe,
        use_case.training,
        use_case.seed,
        use_case.launcher.processes,
        use_case.planning.max_memory_gib,
    )
    model = sharding.load(recipe.load, settings, is_shared=processes > 1)
    preparation = kernels.apply(model, recipe.prepare(model, settings, use_case.seed), settings)
    feed = preparation.feed
    model.train()
    # Held for their memory alone: copies of the pretrained weights.
    anchors = regularization.anchors(recipe, model, settings, use_case.seed)
    place(model, settings if processes > 1 else settings.model_copy(update={"sharding": "none"}), processes)
    if settings.compile:
        layers.compile_layers(model)
    trained_weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = settings.chosen_optimizer.build(
        [{"params": trained_weights, "lr": 0.0, "weight_decay": 0.0}], settings.weights, use_case.seed
    )
    seconds_of_passes, seconds_of_a_step = _time_passes(model, optimizer, preparation)
    del anchors
    num_steps = -(-feed.num_passes // accumulation_steps(settings, 1))
    # Processes on GPUs of their own share the passes; on a CPU they share its cores, as they did here if the
    # model is sharded.
    sharing = processes if processes > 1 else min(use_case.launcher.processes, max(1, num_gpus()))
    return Measured(
        num_parameters=model.num_parameters(),
        num_trained_parameters=model.num_parameters(only_trainable=True),
        num_rows=recipe.num_rows,
        num_steps=num_steps,
        num_tokens=int(feed.lengths.sum()),
        num_padded_tokens=int(feed.sizes.sum()),
        predicted_seconds=seconds_of_passes / sharing + num_steps * seconds_of_a_step,
        peak_memory_bytes=int(_MEMORY_MARGIN * max(ranks.of_all(peak_memory_bytes()))),
        available_memory_bytes=_available_memory_bytes(processes, use_case.launcher.processes),
        device=gpu_name() or f"CPU {platform.machine()}",
        precision=precision.of(settings),
        num_processes=num_local_ranks() if settings.sharding == "fsdp2_by_host" else processes,
    ), preparation.about


def _time_passes(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, preparation: Prepared
) -> tuple[float, float]:
    """Return the seconds of all passes of the feed, interpolated linearly between the sizes that are timed,
    and those of an optimizer step.
    """
    feed = preparation.feed
    # The largest pass first: it decides the memory, and warms everything up.
    picks = np.argsort(-feed.sizes, kind="stable")[
        np.linspace(0, feed.num_passes - 1, min(_TIMED_PASSES, feed.num_passes)).round().astype(int)
    ]
    _timed_pass(model, optimizer, preparation, int(picks[0]))
    seconds_of_picks = np.array([_timed_pass(model, optimizer, preparation, int(pick)) for pick in picks])
    sizes, which = np.unique(feed.sizes[picks], return_inverse=True)
    seconds = np.bincount(which, seconds_of_picks[:, 0]) / np.bincount(which)
    return float(np.interp(feed.sizes, sizes, seconds).sum()), float(np.median(seconds_of_picks[:, 1]))


def _timed_pass(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, preparation: Prepared, number: int
) -> tuple[float, float]:
    inputs = {name: to_device(value) for name, value in preparation.feed.batch(number).items()}
    labels = inputs.pop("labels")
    start = _now()
    stepping = optimizer if isinstance(optimizer, LowMemoryOptimizer) and optimizer.in_backward else None
    with stepping.updating() if stepping is not None else nullcontext():
        (preparation.total_loss(model, inputs, labels) / labels.numel()).backward()
    end_of_pass = _now()
    if stepping is not None:
        return end_of_pass - start, 0.0
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return end_of_pass - start, _now() - end_of_pass


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _free_memory_bytes() -> int:
    free = of_accelerator("mem_get_info")
    # What others hold there is not free for this training.
    return memory_limit() if free is None else free()[0] + torch.accelerator.memory_reserved()


def _available_memory_bytes(processes: int, training_processes: int) -> int:
    if of_accelerator("mem_get_info") is not None:
        return _free_memory_bytes()
    # Processes share the machine's memory; those that were measured together may run on several hosts.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if processes > 1 else training_processes
    return _free_memory_bytes() // sharing


def with_fitting_passes(
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
    processes: int,
    max_memory_gib: float | None,
    progress: Progress | None = None,
) -> TrainingSettings:
    """Return the settings with the rows of a pass in place of `micro_batch_size: auto`: on a GPU the most
    that are counted to fit, with gradient checkpointing where not even one fits without. All processes that
    are connected must call this, and get the same.

    Args:
        processes: of the training.
    """
    if settings.micro_batch_size != "auto":
        return settings
    changes: dict[str, Any] = {"micro_batch_size": settings.rows_a_pass(processes)}
    if of_accelerator("mem_get_info") is not None and not settings.steps_in_backward:
        limit = (
            min(
                min(ranks.of_all(_free_memory_bytes())),
                math.inf if max_memory_gib is None else max_memory_gib * GIB,
            )
            / _MEMORY_MARGIN
        )
        # Not counted: what is there stays, and memory that runs out makes passes smaller.
        with suppress(CannotCount):
            if is_first_rank():
                changes = _fitting_passes(Outline(recipe, settings, seed), settings, processes, limit)
        changes = ranks.from_first(changes)
        if progress is not None:
            progress.say(", ".join(f"{name}: {value}" for name, value in changes.items()))
    return settings.model_copy(update=changes)


def _fitting_passes(
    outline: "Outline", settings: TrainingSettings, processes: int, limit: float
) -> dict[str, Any]:
    def peak(setup: TrainingSettings) -> int:
        target = Target(name="this machine", gpu="GPU")
        return peak_bytes(
            target,
            setup,
            processes,
            outline.memory,
            precision.of(settings),
            max(1, processes // num_local_ranks()),
        )

    smaller = passes(settings, processes, is_gpu=True)
    return next((one for one in smaller if peak(settings.model_copy(update=one)) <= limit), smaller[-1])


#: Functions that autocast on a GPU computes in fp32, whose results and saved inputs are twice as large; on a
#: CPU it does not.
_FP32_ON_GPUS = (
    torch.nn.functional.layer_norm,
    torch.nn.functional.softmax,
    torch.nn.functional.log_softmax,
    torch.rsqrt,
    torch.pow,
    torch.Tensor.pow,
)


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
        """Return the amount of computation of the training: parameters, rows, tokens and shape of the model.

        Raises:
            CannotCount: the model's code asks for values of tensors, which have shapes alone here.
        """
        with _in_one_line(), loading.without_weights():
            model = layers.freeze(self._recipe.load(self._settings), self._settings)
            feed = self._recipe.prepare(model, self._settings, self._seed).feed
            shape = ModelShape.of(model)
        return Work(
            num_parameters=model.num_parameters(),
            num_trained_parameters=model.num_parameters(only_trainable=True),
            num_rows=feed.num_rows,
            num_tokens=int(feed.lengths.sum()),
            num_padded_tokens=int(feed.sizes.sum()),
            flops=float(
                step_flops(feed.lengths, feed.num_predicted, np.array([0, len(feed.lengths)]), shape).sum()
            ),
        )

    def memory(
        self, settings: TrainingSettings, precision: str, is_gpu: bool, processes: int = 1
    ) -> StepMemory:
        """Return the memory of the largest step under these settings.

        Args:
            precision: that the device computes in.
            is_gpu: whether autocast follows the rules of GPUs.
            processes: that share the passes of a batch.

        Raises:
            CannotCount: see there.
        """
        num_passes = 2 if settings.batch_size > settings.rows_a_pass(processes) * processes else 1
        # What does not change the tensors of a step: the formats that only some GPUs compute in take the same
        # memory as these.
        sharing = 1 if settings.sharding == "none" else processes
        settings = settings.model_copy(
            update={"precision": "auto", "compile": False, "sharding": "none", "epochs": 1.0}
        )
        key = (
            settings.model_dump_json(exclude={"batch_size"}) + f" {precision} {is_gpu} {num_passes} {sharing}"
        )
        if key not in self._counted:
            count = partial(
                _count,
                self._recipe,
                settings,
                self._seed,
                precision,
                is_gpu=is_gpu,
                num_passes=num_passes,
                processes=sharing,
            )
            with _in_one_line():
                counted = self._by_few_layers(
                    count, bytes_per_weight(settings.weights) * self._outlined[1] // sharing
                )
                counted = (count() if counted is None else counted).round().astype(int).tolist()
            # Five parts, weights to copies, then peak and activations of each stretch.
            parts = dict(zip(StepMemory.model_fields, counted[:5], strict=False))
            self._counted[key] = StepMemory(**parts, activations=max(counted[6::2]), peak=max(counted[5::2]))
        return self._counted[key]

    @cached_property
    def _outlined(self) -> tuple[PretrainedConfig, int]:
        with loading.without_weights():
            model = self._recipe.load(self._settings)
        return model.config.get_text_config(), model.num_parameters()

    def _by_few_layers(self, count: Callable[..., np.ndarray], weights: int) -> np.ndarray | None:
        """Return what is counted of a deep model from two with fewer layers; None where its layers do not
        repeat, or are few.

        Args:
            weights: bytes of the model's weights, which the two must lead to.
        """
        config = self._outlined[0]
        few = layers.few(config)
        if few is None or self._settings.freeze_layers:
            return None
        shorter, longer = (count(num_layers=number) for number in few)
        counted = shorter + ((config.num_hidden_layers - few[0]) / (few[1] - few[0])) * (longer - shorter)
        # A part of a weight may be rounded.
        return counted if abs(counted[0] - weights) <= config.num_hidden_layers else None


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
    precision: str,
    *,
    is_gpu: bool,
    num_passes: int,
    processes: int,
    num_layers: int | None = None,
) -> np.ndarray:
    """Return the bytes of weights, buffers, gradients, moments and copies, and peak and activations of each
    stretch of the step; each grows by the same with each layer more.

    Args:
        processes: that share the model; 1: each has all of it.
        num_layers: of the model, in place of its own number.
    """
    tracker = Tracker()
    pass_settings = settings
    if processes > 1 and precision != "fp32":
        # Parts are gathered in the format that is computed in.
        pass_settings = settings.model_copy(update={"weights": "bf16"})
        precision = "fp32"
    with loading.without_weights(num_layers) as fake, tracker:
        model = layers.freeze(recipe.load(pass_settings), pass_settings)
        tracker.keep([*model.parameters(), *model.buffers()])
        preparation = recipe.prepare(model, pass_settings, seed)
        model.train()
        layers.recompute(model, settings)
    # Outside of the mode, where tensors have values.
    batch = preparation.feed.batch(int(np.argmax(preparation.feed.sizes)))
    trained_weights = [weight for weight in model.parameters() if weight.requires_grad]
    width = bytes_per_weight(settings.weights)
    backward = _BackwardPass(model, tracker, processes, width, frees_gradients=settings.steps_in_backward)
    with fake, tracker:
        inputs = {
            name: fake.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        labels = inputs.pop("labels")
        for weight in trained_weights:
            weight.register_post_accumulate_grad_hook(backward.add)
        tracker.keep_all()
        tracker.start_again()
        for _ in range(1 if settings.steps_in_backward else num_passes):
            with autocast(precision, is_gpu=is_gpu):
                loss = preparation.total_loss(model, inputs, labels) / max(1, labels.numel())
            # Layers are recomputed in their own format. Outside of autocast their copies of weights in bf16
            # end with the layer.
            with autocast("fp32", is_gpu=is_gpu):
                loss.backward()
            del loss
            backward.end()
    num_trained = sum(weight.numel() for weight in trained_weights)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    weights = width * num_parameters // processes
    copies = copies_bytes(num_parameters, num_trained, settings) // processes
    # The teacher's weights are in the peak of the passes.
    pulled = copies if settings.distillation is None else copies - weights
    gradients = 0 if settings.steps_in_backward else width * num_trained // processes
    moments = settings.chosen_optimizer.state_bytes(settings.weights) * num_trained // processes
    buffers = _bytes(model.buffers())
    state = [weights, buffers, gradients, moments, copies]
    for peak, passing in tracker.stretches:
        # Of a shared model gradients are counted as what passes.
        if processes > 1:
            state += [passing + weights + buffers + moments + copies, passing - gradients]
        else:
            state += [peak + moments + pulled, passing]
    return np.array(state)


class _BackwardPass:
    """Follows the gradients of a pass: from unit to unit, such as a layer, peaks change in another way. Where
    processes share the model, the gradients of a unit are summed in fp32 as soon as all are there, and each
    process keeps its part (FSDP2).

    Args:
        processes: that share the model; 1: each has all of it.
        width: bytes of a gradient that a process keeps.
        frees_gradients: whether an optimizer steps in the backward pass.
    """

    def __init__(
        self, model: PreTrainedModel, tracker: "Tracker", processes: int, width: int, *, frees_gradients: bool
    ):
        self._tracker = tracker
        self._processes = processes
        self._width = width
        self._frees_gradients = frees_gradients
        # Weights outside of the other units are in that of the model, the first one.
        modules = [model, *sharding.units(model)]
        self._unit_of = {
            id(weight): number for number, unit in enumerate(modules) for weight in unit.parameters()
        }
        self._units: list[list[torch.Tensor]] = [[] for _ in modules]
        for weight in model.parameters():
            self._units[self._unit_of[id(weight)]].append(weight)
        sizes = [_bytes(weights) for weights in self._units]
        self._layers = {
            number for number, unit in enumerate(modules) if not isinstance(unit, torch.nn.Embedding)
        } - {0}
        # The model's own unit stays gathered; a layer is computed while the next one is gathered.
        self._gathered = 2 * max((sizes[number] for number in self._layers), default=0)
        self._model_bytes = sizes[0]
        self._part_bytes = self._summed_bytes = 0
        self._kept: set[int] = set()
        self._start()

    def _start(self) -> None:
        self._missing = [sum(weight.requires_grad for weight in weights) for weights in self._units]
        self._whole: set[int] = set()
        self._look_beside()

    def _look_beside(self) -> None:
        if self._processes > 1:
            self._tracker.beside = (
                self._model_bytes
                + (self._gathered if self._layers - self._whole else 0)
                + self._part_bytes
                + self._summed_bytes
            )

    def add(self, weight: torch.Tensor) -> None:
        """Take a weight's gradient, which is complete."""
        if self._frees_gradients:
            weight.grad = None
        elif self._processes == 1:
            self._tracker.keep([weight.grad])
        number = self._unit_of[id(weight)]
        self._missing[number] -= 1
        if number and not self._missing[number]:
            self._finish_unit(number)

    def end(self) -> None:
        """End the pass; the model's own unit is the last one."""
        self._finish_unit(0)
        self._tracker.next_stretch()
        self._start()

    def _finish_unit(self, number: int) -> None:
        self._whole.add(number)
        if self._processes > 1:
            trained_weights = [weight for weight in self._units[number] if weight.requires_grad]
            size = 4 * sum(weight.numel() for weight in trained_weights)
            self._tracker.note(size)
            self._summed_bytes = size
            for weight in trained_weights:
                weight.grad = None
            if number not in self._kept:
                self._kept.add(number)
                self._part_bytes += size // 4 * self._width // self._processes
            self._look_beside()
        # Between the first and the last layer peaks rise or fall evenly.
        if len(self._whole) <= 2 or len(self._layers - self._whole) <= 1:
            self._tracker.next_stretch()


class Tracker(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until nothing refers to them any more.

    Attributes:
        live: bytes that exist.
        peak: most that existed since the start.
        passing: most of them that are neither kept from step to step nor gradients.
        stretches: `peak` and `passing` of each stretch that has ended.
        beside: bytes that pass, and that no operation here makes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self._passing = self.beside = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        #: Of the storages that pass with the step.
        self._sizes: dict[int, int] = {}
        self.start_again()

    def start_again(self) -> None:
        """Forget the peaks."""
        self.peak = self.passing = 0
        self.stretches: list[tuple[int, int]] = []

    def next_stretch(self) -> None:
        """Begin to look for the most that exists anew."""
        self.stretches.append((self.peak, self.passing))
        self.peak = self.passing = 0
        self.note()

    def note(self, more: int = 0) -> None:
        """Count what exists now, and so many bytes more."""
        self.peak = max(self.peak, self.live + self.beside + more)
        self.passing = max(self.passing, self._passing + self.beside + more)

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in filter(torch.is_tensor, tree_leaves(result)):
            self._add(value)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        # The storage of one that processes share has the size of all of it.
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = weakref.ref(storage, lambda _: self._remove(key, size))
        self._sizes[key] = size
        self.live += size
        self._passing += size
        self.note()

    def _remove(self, key: int, size: int) -> None:
        del self._storages[key]
        self._keep(key)
        self.live -= size


class _Fp32OnGpus(TorchFunctionMode):
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
def autocast(precision: str, *, is_gpu: bool) -> Iterator[None]:
    """Context in which fake tensors get the formats and the sizes that they would have on the device."""
    is_half = precision != "fp32"
    token = PLANNED_DEVICE.set("cuda" if is_gpu else "cpu")
    try:
        with (
            torch.autocast("cpu", dtype=torch.bfloat16) if is_half else nullcontext(),
            _Fp32OnGpus() if is_gpu and is_half else nullcontext(),
        ):
            yield
    finally:
        PLANNED_DEVICE.reset(token)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


#: Operations a second that training reaches on one CPU core (MiniLM in fp32 reached 70e9).
_CPU_CORE_FLOPS = 60e9
#: How far a CPU's speed strays from what is assumed of it.
_CPU_SPREAD = (0.4, 1.5)


class TargetPlanner(Outline):
    """Plans a training on machines that are not there.

    Args:
        num_held_out_rows: validation and test rows.
    """

    def __init__(self, recipe: Recipe, settings: UseCaseSettings, num_held_out_rows: int):
        self._use_case = settings.with_epochs(recipe.num_rows)
        super().__init__(recipe, self._use_case.training, settings.seed)
        self._num_held_out_rows = num_held_out_rows

    def plans(self, measured_speed: float | None) -> list[TargetPlan]:
        """Return the plan on each target, this machine first.

        Args:
            measured_speed: useful FLOP/s that a training of this use case reached here. Default: an
                assumption.

        Raises:
            CannotCount: the model cannot be outlined.
        """
        return plan_targets(
            self._use_case,
            this_machine(self._use_case, measured_speed),
            self.work(),
            shares(self._use_case, self._recipe.num_rows, self._num_held_out_rows),
            self.memory,
            here_precision=precision.of(self._settings),
        )


def this_machine(settings: UseCaseSettings, measured_speed: float | None) -> Target:
    """Return this machine: its GPU, or its CPU, with the memory that is free on it now."""
    gpu = gpu_name()
    speed = None if measured_speed is None else (measured_speed, measured_speed)
    common: dict[str, Any] = {
        "memory_bytes": _free_memory_bytes(),
        "is_measured": speed is not None,
        "hourly_usd": settings.planning.hourly_usd,
        "kind": "here",
    }
    if gpu is not None:
        return Target(
            name="this machine",
            gpu=gpu,
            gpus=num_gpus(),
            flops=peak_flops(gpu, "bf16"),
            speed=speed,
            **common,
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    core_flops = cores * _CPU_CORE_FLOPS
    return Target(
        name=f"this machine ({os.cpu_count()} CPUs)",
        libraries_bytes=psutil.Process().memory_info().rss,
        speed=speed or (_CPU_SPREAD[0] * core_flops, _CPU_SPREAD[1] * core_flops),
        **common,
    )
