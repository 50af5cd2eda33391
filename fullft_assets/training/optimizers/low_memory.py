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

#: Elements updated at a time: as many as stay in a CPU's cache, or fill a GPU.
_CPU_CHUNK = 2**17
_GPU_CHUNK = 2**24


@dataclass(frozen=True)
class Update:
    """What a rule is given to update one weight.

    Attributes:
        weight, gradient: of one shape.
        group: its group of the optimizer: `lr`, `weight_decay` and `num_steps`, this step included.
        state: what the rule keeps of this weight from step to step; empty before its first step.
        rounding: generator of the noise of stochastic rounding; None where the weight is not bf16.
        chunk: elements to compute with at a time.
    """

    weight: torch.Tensor
    gradient: torch.Tensor
    group: dict[str, Any]
    state: dict[str, torch.Tensor]
    rounding: torch.Generator | None
    chunk: int

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
        bits = torch.empty(like.shape, dtype=torch.int32, device=like.device)
        return bits.random_(-(2**31), 2**31, generator=self.rounding)

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
        rounding = None
        if weight.dtype == torch.bfloat16:
            rounding = torch.Generator(weight.device).manual_seed(
                (self._seed * 1_000_003 + group["num_steps"]) * 100_003 + number
            )
        chunk = _CPU_CHUNK if weight.device.type == "cpu" else _GPU_CHUNK
        self._rule(Update(weight, gradient, group, self.state[weight], rounding, chunk))
