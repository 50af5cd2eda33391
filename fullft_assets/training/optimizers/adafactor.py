"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), without first moment and relative step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fullft_assets.settings.optimizers import Optimizer, Weights

if TYPE_CHECKING:
    import torch

    from fullft_assets.training.optimizers.low_memory import Update

#: The second moment decays by 1 - t^-0.8.
_DECAY = 0.8
_TINY = 1e-30
#: An update's RMS is at most 1.
_LARGEST_UPDATE = 1.0


class Adafactor(Optimizer):
    """Keeps the second moment of each row and each column of a matrix, next to nothing beside the weights."""

    takes_bf16 = True

    def __init__(self, *, steps_in_backward: bool):
        self.steps_in_backward = steps_in_backward
        self.takes_shards = not steps_in_backward

    def build(self, groups: list[dict[str, Any]], weights: Weights, seed: int) -> torch.optim.Optimizer:
        """Return the optimizer; its gradients need no clipping."""
        from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer

        return LowMemoryOptimizer(groups, step, seed=seed, in_backward=self.steps_in_backward)


def step(update: Update) -> None:
    """Update a weight, and the moments of its rows and columns."""
    (_step_vector if update.weight.dim() < 2 else _step_matrix)(
        update, (1 - update.group["num_steps"] ** -_DECAY)
    )


def _step_matrix(update: Update, decay: float) -> None:
    import torch

    weight = update.weight
    slopes = update.gradient.reshape(-1, weight.shape[-1])
    row = update.moment("row", weight.shape[:-1]).view(-1)
    column = update.moment("column", weight.shape[-1:], is_divided=False)
    # Of the complete weight, of which this may be a part.
    size = update.shape.numel()
    num_rows = size // len(column)
    rows_a_chunk = max(1, update.chunk // slopes.shape[1])
    row_means = []
    column_sums = torch.zeros_like(column)
    for slope in slopes.split(rows_a_chunk):
        square = slope.float().square().add_(_TINY)
        row_means.append(square.mean(1))
        column_sums += square.sum(0)
    row.lerp_(torch.cat(row_means), 1 - decay)
    column.lerp_(update.total(column_sums) / num_rows, 1 - decay)
    by_row = (row / update.mean(row, num_rows)).rsqrt()
    by_column = column.rsqrt()
    pairs = list(zip(slopes.split(rows_a_chunk), by_row.split(rows_a_chunk), strict=True))
    squares = torch.zeros((), device=weight.device)
    for slope, scale in pairs:
        squares += (slope * scale[:, None]).mul_(by_column).square_().sum()
    too_large = ((update.total(squares) / size).sqrt() / _LARGEST_UPDATE).clamp(min=1.0)
    for part, (slope, scale) in zip(
        weight.detach().view(slopes.shape).split(rows_a_chunk), pairs, strict=True
    ):
        value = part.float().mul_(update.decay)
        value.sub_((slope * scale[:, None]).mul_(by_column).mul_(update.group["lr"] / too_large))
        update.write(part, value, update.noise(value))


def _step_vector(update: Update, decay: float) -> None:
    slope = update.gradient.float()
    square = update.moment("square", slope.shape)
    square.lerp_(slope.square().add_(_TINY), 1 - decay)
    change = slope * square.rsqrt()
    change /= (update.mean(change.square(), update.shape.numel()).sqrt() / _LARGEST_UPDATE).clamp(min=1.0)
    value = update.weight.float().mul_(update.decay).sub_(change.mul_(update.group["lr"]))
    update.write(update.weight, value, update.noise(value))


ADAFACTOR = Adafactor(steps_in_backward=False)
ADAFACTOR_IN_BACKWARD = Adafactor(steps_in_backward=True)
