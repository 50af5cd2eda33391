"""The registered optimizers of `training.optimizer`: ours and those of other packages.

Another package registers an object of a class with the methods of `Optimizer`:

    [project.entry-points."fullft_assets.optimizers"]
    lion = "their_package.lion:LION"

and a use case names it: `training: {optimizer: lion}`. Its module must not import torch before `build` is
called, since a plan asks for its memory where there is no torch.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fullft_assets.registry import Registry

if TYPE_CHECKING:
    import torch

Weights = Literal["fp32", "bf16"]


class Optimizer:
    """An optimizer: what planning and the checks of the settings have to know of it, and how it is built.

    Attributes:
        steps_in_backward: whether each weight is updated, and its gradient freed, as soon as the gradient is
            there. `build` must then return a `training.optimizers.low_memory.LowMemoryOptimizer`, which
            bounds its updates itself: their gradients are not clipped.
        takes_bf16: whether small updates of weights in bf16 survive, such as by stochastic rounding.
        takes_betas: whether its groups may have `betas`, see `training.betas`.
        takes_shards: whether each process may hold a part of each weight (`training.sharding`).
    """

    steps_in_backward: bool = False
    takes_bf16: ClassVar[bool] = False
    takes_betas: ClassVar[bool] = False
    takes_shards: bool = False

    def state_bytes(self, weights: Weights) -> int:
        """Return the bytes that it keeps from step to step for each trained weight; none by default."""
        return 0

    def build(self, groups: list[dict[str, Any]], weights: Weights, seed: int) -> "torch.optim.Optimizer":
        """Return the optimizer of a training.

        Args:
            groups: weights that are trained as `params`, with their `lr` and `weight_decay`, and
                `betas` if they are set.
            weights: format of the weights.
            seed: of everything that it draws.
        """
        raise NotImplementedError


#: By the names in a YAML.
OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    "fullft_assets.optimizers",
    {
        "adamw": "fullft_assets.training.optimizers.adamw:ADAMW",
        "adafactor": "fullft_assets.training.optimizers.adafactor:ADAFACTOR",
        "adafactor_in_backward": "fullft_assets.training.optimizers.adafactor:ADAFACTOR_IN_BACKWARD",
    },
)


def bytes_per_weight(weights: Weights) -> int:
    """Return the bytes of one weight in this format."""
    return 4 if weights == "fp32" else 2
