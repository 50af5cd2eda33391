"""A torch optimizer that updates one weight after the other with few temporary tensors, in the backward pass
or after it.

In the backward pass it updates each weight as soon as its gradient is there, and frees the gradient: the
gradients of a complete model never exist (Lv et al. 2023, arXiv 2306.09782, do so with plain gradient
descent). Therefore gradients cannot be accumulated over passes, and their norm is known only afterwards: a
rule has to bound its updates itself.

Weights in bf16 are rounded stochastically as they are written. With rounding to the nearest value, an update
of less than 1/512 of its weight would be lost (Zamirai et al. 2020, arXiv 2010.06192).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

#: Elements updated at a time: as many as stay in a CPU's cache, or fill a GPU.
_CPU_CHUNK = 2**17
_GPU_CHUNK = 2**24
#: Between the seeds of the noise of a weight's parts; a CPU's generator takes the lower 32 bits alone.
_PARTS_APART = 15_485_863


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that processes share; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(weight: DTensor, part: torch.Tensor) -> DTensor:
    """Return a tensor divided along its first dimension as a weight is, of which this process has a part."""
    shape = torch.Size([weight.shape[0], *part.shape[1:]])
    return DTensor.from_local(
        part,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


@dataclass(frozen=True)
class Update:
    """What a rule is given to update one weight, or this process's part of one that processes share.

    Attributes:
        weight, gradient: of one shape.
        group: its group of the optimizer: `lr`, `weight_decay` and `num_steps`, this step included.
        state: what the rule keeps of this weight from step to step; empty before its first step.
        rounding: generator of the noise of stochastic rounding; None where the weight is not bf16.
        chunk: elements to compute with at a time.
        shared_weight: the weight that this is a part of, along its first dimension; None: it is complete.
    """

    weight: torch.Tensor
    gradient: torch.Tensor
    group: dict[str, Any]
    state: dict[str, torch.Tensor]
    rounding: torch.Generator | None
    chunk: int
    shared_weight: DTensor | None

    @property
    def shape(self) -> torch.Size:
        """Shape of the complete weight."""
        return self.weight.shape if self.shared_weight is None else self.shared_weight.shape

    def moment(
        self, name: str, shape: torch.Size, dtype: torch.dtype = torch.float32, *, is_divided: bool = True
    ) -> torch.Tensor:
        """Return what is kept by a name, this process's part where it is divided as the weight is; zeros
        before the first step.
        """
        if name not in self.state:
            zeros = self.weight.new_zeros(shape, dtype=dtype)
            self.state[name] = (
                part_like(self.shared_weight, zeros)
                if is_divided and self.shared_weight is not None
                else zeros
            )
        return local(self.state[name])

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the parts of the weight, in place."""
        if self.shared_weight is not None:
            mesh = self.shared_weight.device_mesh
            torch.distributed.all_reduce(value, group=mesh.get_group(mesh.ndim - 1))
        return value

    def mean(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return the mean of values over the parts of the weight, which have so many together."""
        return values.mean() if self.shared_weight is None else self.total(values.sum()) / count

    def chunks(self, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield aligned parts of tensors of one shape."""
        if not all(tensor.is_contiguous() for tensor in tensors):
            yield tuple(tensor.detach() for tensor in tensors)
            return
        yield from zip(*(tensor.detach().view(-1).split(self.chunk) for tensor in tensors), strict=True)

    def noise(self, like: torch.Tensor) -> torch.Tensor | None:
        """Return 32 random bits an element, or None where nothing is rounded."""
        if self.rounding is None:
            return None
        return torch.empty(like.shape, dtype=torch.int32, device=like.device).random_(
            -(2**31), 2**31, generator=self.rounding
        )

    @property
    def decay(self) -> float:
        """Factor on the weight for its decoupled decay."""
        return 1 - self.group["lr"] * self.group["weight_decay"]

    @staticmethod
    def write(target: torch.Tensor, value: torch.Tensor, bits: torch.Tensor | None) -> None:
        """Write fp32 values, rounded up or down at random by the lower 16 of these bits where the target
        is bf16.
        """
        if bits is None:
            target.copy_(value)
            return
        # bf16 is the upper half of fp32: the carry of the lower half plus noise rounds up with the right
        # probability.
        target.copy_(value.view(torch.int32).add_(bits & 0xFFFF).bitwise_and_(-0x10000).view(torch.float32))


#: The rule of an optimizer: changes the weight and the state in place.
Rule = Callable[[Update], None]


class LowMemoryOptimizer(torch.optim.Optimizer):
    """Updates one weight after the other by a rule, in the backward pass or after it.

    The same seed and steps give the same bits: the noise of each rounding is drawn from the seed, the step
    and the weight's number.

    Args:
        in_backward: update in the backward pass; each pass then needs the context `updating`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rule: Rule,
        *,
        seed: int = 0,
        in_backward: bool = False,
    ):
        super().__init__(groups, {"num_steps": 0})
        self._rule = rule
        self._seed = seed
        self.in_backward = in_backward
        #: By weight: the number of its group and its own. (A loaded state replaces the groups themselves.)
        self._places: dict[torch.Tensor, tuple[int, int]] = {}
        for number, group in enumerate(self.param_groups):
            for weight in group["params"]:
                self._places[weight] = (number, len(self._places))
        #: Weights that this backward pass has updated; None outside of one.
        self._updated: set[torch.Tensor] | None = None
        self._squares: list[torch.Tensor] = []
        if in_backward:
            for weight in self._places:
                weight.register_post_accumulate_grad_hook(self._gradient_arrived)

    @property
    def norm(self) -> torch.Tensor:
        """The norm of the last pass's gradients."""
        return torch.stack(self._squares).sum().sqrt() if self._squares else torch.zeros(())

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Context of the backward pass that updates the weights."""
        for group in self.param_groups:
            group["num_steps"] += 1
        self._squares = []
        self._updated = set()
        try:
            yield
        finally:
            self._updated = None

    @torch.no_grad()
    # No closures.
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Update all weights that have a gradient; the backward pass may have done so already."""
        assert closure is None
        if self.in_backward:
            return
        for group in self.param_groups:
            group["num_steps"] += 1
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as it was saved; torch would cast it to the number format of the weights."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, state in state_dict["state"].items():
            weight = weights[number]
            self.state[weight] = {
                name: value.detach().clone().to(weight.device) for name, value in state.items()
            }

    @torch.no_grad()
    def _gradient_arrived(self, weight: torch.Tensor) -> None:
        assert self._updated is not None, "a backward pass outside of a step"
        assert weight not in self._updated, "its gradient came in two parts"
        assert weight.grad is not None, "torch calls the hook with the gradient in place"
        self._updated.add(weight)
        self._squares.append(torch.linalg.vector_norm(weight.grad, dtype=torch.float32).square())
        self._update(weight, weight.grad)
        weight.grad = None

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        group_number, number = self._places[weight]
        group = self.param_groups[group_number]
        state = self.state[weight]
        shared_weight = weight if isinstance(weight, DTensor) else None
        weight = local(weight)
        rounding = None
        if weight.dtype == torch.bfloat16:
            # Each part has noise of its own, and its copies on other hosts the same.
            mesh = None if shared_weight is None else shared_weight.device_mesh
            part = 0 if mesh is None else mesh.get_local_rank(mesh.ndim - 1)
            rounding = torch.Generator(weight.device).manual_seed(
                (self._seed * 1_000_003 + group["num_steps"]) * 100_003 + number + part * _PARTS_APART
            )
        self._rule(
            Update(
                weight,
                local(gradient),
                group,
                state,
                rounding,
                (_CPU_CHUNK if weight.device.type == "cpu" else _GPU_CHUNK),
                shared_weight,
            )
        )
