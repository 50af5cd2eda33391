"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101): torch's own in fp32, else one that rounds
stochastically.
"""

from typing import TYPE_CHECKING, Any

from fullft_assets.settings.optimizers import Optimizer, Weights, bytes_per_weight

if TYPE_CHECKING:
    import torch

    from fullft_assets.training.optimizers.low_memory import Update

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW(Optimizer):
    """Keeps two moments of each weight, in the weight's format."""

    takes_bf16 = True
    takes_betas = True
    takes_shards = True

    def state_bytes(self, weights: Weights) -> int:
        """Return the bytes of both moments."""
        return 2 * bytes_per_weight(weights)

    def build(self, groups: list[dict[str, Any]], weights: Weights, seed: int) -> "torch.optim.Optimizer":
        """Return torch's optimizer for weights in fp32, else our own."""
        import torch

        from fullft_assets.training.optimizers.low_memory import LowMemoryOptimizer

        return (
            LowMemoryOptimizer(groups, step, seed=seed)
            if weights == "bf16"
            else torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, fused=True)
        )


def step(update: "Update") -> None:
    """Update a weight and its moments."""
    weight = update.weight
    moments = [update.moment(name, weight.shape, weight.dtype) for name in ("exp_avg", "exp_avg_sq")]
    first, second = update.group.get("betas", BETAS)
    rate = update.group["lr"]
    steps = update.group["num_steps"]
    for part, slope, mean, square in update.chunks(weight, update.gradient, *moments):
        slope = slope.float()
        bits = update.noise(slope)
        m = mean.float().lerp_(slope, 1 - first)
        v = square.float().mul_(second).addcmul_(slope, slope, value=1 - second)
        value = part.float().mul_(update.decay)
        root = v.sqrt().div_((1 - second**steps) ** 0.5).add_(EPSILON)
        value.addcdiv_(m, root, value=-rate / (1 - first**steps))
        update.write(part, value, bits)
        # The first moment moves by a tenth each step, for which the nearest value is good enough; the
        # second by a thousandth.
        mean.copy_(m)
        update.write(square, v, None if bits is None else bits >> 16)


ADAMW = AdamW()
