"""The optimizers: one rung of the memory ladder each, from AdamW in fp32 down to LOMO on bf16 weights.

An optimizer *in the backward pass* updates each weight as soon as its gradient is there, and frees the
gradient: the gradients of a complete model never exist. LOMO (Lv et al. 2023, arXiv 2306.09782) does so with
plain gradient descent, which keeps no state; here AdamW and Adafactor do so as well. Therefore gradients
cannot be accumulated over passes, and their norm is known only
afterwards: clipping by norm takes a pass of its own before (section 3.2.2 of the paper), clipping by value
    does not.

Weights in bf16 are rounded stochastically as they are written. With rounding to the nearest value, an update
of less than 1/512 of its weight would be lost (Zamirai et al. 2020, arXiv 2010.06192).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fullft_assets.settings import IN_BACKWARD, TrainingSettings

#: Elements updated at a time: as many as stay in a CPU's cache, or fill a GPU.
_CHUNK = {"cpu": 2**17, "cuda": 2**24}
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
#: Adafactor (Shazeer & Stern 2018, arXiv 1804.04235): the second moment decays by 1 - t^-0.8, an update's RMS
#: is at most 1.
_DECAY, _TINY, _LARGEST_UPDATE = 0.8, 1e-30, 1.0


def dtype_of_weights(settings: TrainingSettings) -> torch.dtype:
    """Return the number format of the weights."""
    return torch.bfloat16 if settings.weights == "bf16" else torch.float32


def build(
    groups: list[dict[str, Any]], settings: TrainingSettings, seed: int, chunk: int | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer that the settings ask for; `chunk` as for `LowMemoryOptimizer`."""
    if settings.optimizer == "adamw_8bit":
        return _eight_bit(groups)
    if settings.optimizer == "adamw" and settings.weights == "fp32":
        return torch.optim.AdamW(groups, betas=_BETAS, eps=_EPSILON, fused=True)
    return LowMemoryOptimizer(
        groups,
        settings.optimizer.removesuffix(IN_BACKWARD),
        seed=seed,
        in_backward=settings.steps_in_backward,
        max_norm=settings.max_grad_norm if settings.clips_in_two_passes else None,
        max_value=settings.max_grad_value,
        chunk=chunk,
    )


def _eight_bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from bitsandbytes.optim.adamw import AdamW8bit  # pyright: ignore[reportMissingImports]  # an extra

    return AdamW8bit(groups, betas=_BETAS, eps=_EPSILON)


class LowMemoryOptimizer(torch.optim.Optimizer):
    """Updates one weight after the other with few temporary tensors, in the backward pass or after it; rounds
    bf16 weights stochastically.

    The same seed and steps give the same bits: the noise of each rounding is drawn from the seed, the step
    and the weight's number.

    Args:
        rule: adamw, adafactor (without first moment and relative step) or lomo (gradient descent).
        in_backward: update in the backward pass; each pass then needs the context `updating`.
        max_norm: clip the gradients of a step to this norm, which an earlier pass measures; only in the
            backward pass.
        chunk: elements updated at a time. Default: what suits the device.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rule: str,
        *,
        seed: int = 0,
        in_backward: bool = False,
        max_norm: float | None = None,
        max_value: float | None = None,
        chunk: int | None = None,
    ):
        super().__init__(groups, {"num_steps": 0})
        self._rule: Callable[..., None] = {
            "adamw": self._adamw,
            "adafactor": self._adafactor,
            "lomo": self._descend,
        }[rule]
        self._seed, self.in_backward, self._max_norm, self._max_value, self._chunk = (
            seed,
            in_backward,
            max_norm,
            max_value,
            chunk,
        )
        #: By weight: the number of its group and its own. (A loaded state replaces the groups themselves.)
        self._places: dict[torch.Tensor, tuple[int, int]] = {}
        for number, group in enumerate(self.param_groups):
            for weight in group["params"]:
                self._places[weight] = (number, len(self._places))
        self._on_gradient: Callable[[torch.Tensor, torch.Tensor], None] | None = None
        self._seen: set[torch.Tensor] = set()
        self._squares: list[torch.Tensor] = []
        self._factor: torch.Tensor | None = None
        if in_backward:
            for weight in self._places:
                weight.register_post_accumulate_grad_hook(self._gradient_arrived)

    @property
    def measures_first(self) -> bool:
        """Whether each step needs a pass of its own to measure the gradients' norm."""
        return self.in_backward and self._max_norm is not None

    @property
    def norm(self) -> torch.Tensor:
        """The norm of the last pass's gradients, before clipping."""
        return torch.stack(self._squares).sum().sqrt() if self._squares else torch.zeros(())

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context of a backward pass that only measures the gradients' norm."""
        with self._handling(self._measure):
            yield
        assert self._max_norm is not None
        # The same formula as torch's clip_grad_norm_.
        self._factor = (self._max_norm / (self.norm + 1e-6)).clamp(max=1.0)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Context of the backward pass that updates the weights."""
        for group in self.param_groups:
            group["num_steps"] += 1
        with self._handling(self._measure_and_update):
            yield
        self._factor = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # no closures
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

    @contextmanager
    def _handling(self, on_gradient: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
        self._squares, self._on_gradient, self._seen = [], on_gradient, set()
        try:
            yield
        finally:
            self._on_gradient = None

    def _gradient_arrived(self, weight: torch.Tensor) -> None:
        assert self._on_gradient is not None, "a backward pass outside of a step"
        assert weight not in self._seen, "its gradient came in two parts"
        assert weight.grad is not None, "torch calls the hook with the gradient in place"
        self._seen.add(weight)
        with torch.no_grad():
            self._on_gradient(weight, weight.grad)
        weight.grad = None

    def _measure(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        self._squares.append(torch.linalg.vector_norm(gradient, dtype=torch.float32).square())

    def _measure_and_update(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        self._measure(weight, gradient)
        if self._factor is not None:
            gradient.mul_(self._factor.to(gradient.dtype))
        if self._max_value is not None:
            gradient.clamp_(-self._max_value, self._max_value)
        self._update(weight, gradient)

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        group_number, number = self._places[weight]
        group = self.param_groups[group_number]
        rounding = None
        if weight.dtype == torch.bfloat16:
            rounding = torch.Generator(weight.device).manual_seed(
                (self._seed * 1_000_003 + group["num_steps"]) * 100_003 + number
            )
        self._rule(weight, gradient, group, self.state[weight], rounding)

    def _chunk_of(self, weight: torch.Tensor) -> int:
        return self._chunk or _CHUNK[weight.device.type]

    def _chunks(self, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield aligned parts of tensors of one shape."""
        if not all(tensor.is_contiguous() for tensor in tensors):
            yield tuple(tensor.detach() for tensor in tensors)
            return
        size = self._chunk_of(tensors[0])
        yield from zip(*(tensor.detach().view(-1).split(size) for tensor in tensors), strict=True)

    def _descend(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        group: dict,
        state: dict,
        rounding: torch.Generator | None,
    ) -> None:
        for part, slope in self._chunks(weight, gradient):
            value = part.float().mul_(1 - group["lr"] * group["weight_decay"])
            _write(part, value.add_(slope.float(), alpha=-group["lr"]), _bits(value, rounding))

    def _adamw(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        group: dict,
        state: dict,
        rounding: torch.Generator | None,
    ) -> None:
        if not state:
            state.update(exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        first, second = _BETAS
        rate, steps = group["lr"], group["num_steps"]
        for part, slope, mean, square in self._chunks(
            weight, gradient, state["exp_avg"], state["exp_avg_sq"]
        ):
            slope = slope.float()
            bits = _bits(slope, rounding)
            m = mean.float().lerp_(slope, 1 - first)
            v = square.float().mul_(second).addcmul_(slope, slope, value=1 - second)
            value = part.float().mul_(1 - rate * group["weight_decay"])
            root = v.sqrt().div_((1 - second**steps) ** 0.5).add_(_EPSILON)
            value.addcdiv_(m, root, value=-rate / (1 - first**steps))
            _write(part, value, bits)
            # The first moment moves by a tenth each step, for which the nearest value is good enough; the
            # second by a thousandth.
            mean.copy_(m)
            _write(square, v, None if bits is None else bits >> 16)

    def _adafactor(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        group: dict,
        state: dict,
        rounding: torch.Generator | None,
    ) -> None:
        kept = 1 - group["num_steps"] ** -_DECAY
        if weight.dim() < 2:
            self._adafactor_vector(weight, gradient, group, state, rounding, kept)
            return
        slopes = gradient.reshape(-1, weight.shape[-1])
        if not state:
            state.update(
                row=slopes.new_zeros(len(slopes), dtype=torch.float32),
                column=slopes.new_zeros(slopes.shape[1], dtype=torch.float32),
            )
        row, column = state["row"], state["column"]
        rows_a_chunk = max(1, self._chunk_of(weight) // slopes.shape[1])
        of_rows, of_columns = [], torch.zeros_like(column)
        for slope in slopes.split(rows_a_chunk):
            square = slope.float().square().add_(_TINY)
            of_rows.append(square.mean(1))
            of_columns += square.sum(0)
        row.lerp_(torch.cat(of_rows), 1 - kept)
        column.lerp_(of_columns / len(slopes), 1 - kept)
        by_row, by_column = (row / row.mean()).rsqrt(), column.rsqrt()
        pairs = list(zip(slopes.split(rows_a_chunk), by_row.split(rows_a_chunk), strict=True))
        squares = torch.zeros((), device=weight.device)
        for slope, scale in pairs:
            squares += (slope * scale[:, None]).mul_(by_column).square_().sum()
        too_large = ((squares / slopes.numel()).sqrt() / _LARGEST_UPDATE).clamp(min=1.0)
        rate = group["lr"]
        for part, (slope, scale) in zip(
            weight.detach().view(slopes.shape).split(rows_a_chunk), pairs, strict=True
        ):
            value = part.float().mul_(1 - rate * group["weight_decay"])
            value.sub_((slope * scale[:, None]).mul_(by_column).mul_(rate / too_large))
            _write(part, value, _bits(value, rounding))

    def _adafactor_vector(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        group: dict,
        state: dict,
        rounding: torch.Generator | None,
        kept: float,
    ) -> None:
        slope = gradient.float()
        if not state:
            state.update(square=torch.zeros_like(slope))
        state["square"].lerp_(slope.square().add_(_TINY), 1 - kept)
        update = slope * state["square"].rsqrt()
        update /= (update.square().mean().sqrt() / _LARGEST_UPDATE).clamp(min=1.0)
        value = weight.float().mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.mul_(group["lr"]))
        _write(weight, value, _bits(value, rounding))


def _bits(like: torch.Tensor, rounding: torch.Generator | None) -> torch.Tensor | None:
    """Return 32 random bits an element, or None."""
    if rounding is None:
        return None
    return torch.empty(like.shape, dtype=torch.int32, device=like.device).random_(
        -(2**31), 2**31, generator=rounding
    )


def _write(target: torch.Tensor, value: torch.Tensor, bits: torch.Tensor | None) -> None:
    """Write fp32 values, rounded up or down at random by the lower 16 of these bits where the target
    is bf16.
    """
    if bits is None:
        target.copy_(value)
        return
    # bf16 is the upper half of fp32: the carry of the lower half plus noise rounds up with the right
    # probability.
    target.copy_(value.view(torch.int32).add_(bits & 0xFFFF).bitwise_and_(-0x10000).view(torch.float32))
