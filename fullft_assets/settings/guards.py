"""The section `training.guards`, and the registered guards of a training run: ours and those of other
packages.

Another package registers a class with the protocol of `fullft_assets.training.guards.Guard`:

    [project.entry-points."fullft_assets.guards"]
    slow_steps = "their_package.guards:SlowSteps"

and a use case switches it on by its name, with an action and the guard's own settings:

    training:
      guards:
        more:
          slow_steps: {action: warn, min_tokens_per_second: 100}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry
from fullft_assets.settings.base import Float, Settings, YamlOff

GuardAction = Annotated[Literal["off", "warn", "roll_back", "stop"], YamlOff()]
_ACTION = (
    "`off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate) or `stop` (the run fails)."
)


_WarnOrStop = Annotated[Literal["off", "warn", "stop"], YamlOff()]


class GuardSettings(Settings):
    """Base of each guard's settings, also of those in other packages: the action that follows, and the
    guard's own thresholds.
    """

    action: GuardAction = Field(default="warn", description=f"What to do: {_ACTION}")


class NonFiniteGuard(GuardSettings):
    """A loss or gradient that is not a finite number."""

    action: GuardAction = Field(default="roll_back", description=f"What to do: {_ACTION}")


class LossSpikeGuard(GuardSettings):
    """A training loss far above the recent ones, for several steps in a row."""

    action: GuardAction = Field(default="roll_back", description=f"What to do: {_ACTION}")
    window: int = Field(
        default=50,
        ge=10,
        le=10_000,
        description="Number of recent healthy steps that a step is compared with.",
    )
    deviations: Float = Field(
        default=8.0,
        gt=0,
        description=(
            "A step is a spike if its loss is this many robust standard deviations (1.4826 MAD) above the"
            " median."
        ),
    )
    steps: int = Field(
        default=3, ge=1, description="Number of consecutive spikes; a single one is only a hard batch."
    )


class ExplodingGradientGuard(GuardSettings):
    """Gradients far beyond what clipping is meant for, for several steps in a row."""

    window: int = Field(
        default=50,
        ge=10,
        le=10_000,
        description="Number of recent healthy steps that a step is compared with.",
    )
    factor: Float = Field(
        default=100.0,
        gt=1,
        description=(
            "A norm is exploded if it exceeds the recent median (at least max_grad_norm) by this factor."
        ),
    )
    steps: int = Field(default=3, ge=1, description="Number of consecutive steps that must exceed it.")


class DeadGradientGuard(GuardSettings):
    """Gradients that have vanished while there is still a loss to lower."""

    action: GuardAction = Field(default="stop", description=f"What to do: {_ACTION}")
    below: Float = Field(default=1e-7, gt=0, description="A gradient norm below this counts as dead.")
    steps: int = Field(default=20, ge=1, description="Number of consecutive steps that must be dead.")


class NoProgressGuard(GuardSettings):
    """A loss that has not fallen after a share of the steps, looked at once."""

    action: GuardAction = Field(default="stop", description=f"What to do: {_ACTION}")
    share: Float = Field(
        default=0.5, gt=0, lt=1, description="Share of the steps after which the loss must have fallen."
    )
    min_steps: int = Field(
        default=100,
        ge=8,
        description="If fewer steps were taken by then, the rule does not apply: they are too few to judge.",
    )
    min_fall: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "Minimum relative fall of the mean loss from the first quarter of these steps to the last."
        ),
    )


class OverfittingGuard(GuardSettings):
    """A validation loss that stays above its best."""

    action: GuardAction = Field(
        default="warn",
        description=(
            "What to do: `off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate; after"
            " the last roll-back it is `stop`), or `stop`: training ends normally at this step, with the"
            " model that keep_best selects."
        ),
    )
    factor: Float = Field(
        default=1.1,
        gt=1,
        description="A validation loss counts as overfitted if it exceeds the best one by this factor.",
    )
    looks: int = Field(default=2, ge=1, description="Number of consecutive validations that must exceed it.")


class IdleGuard(GuardSettings):
    """An accelerator that waits for data; never on a CPU."""

    # Settings are frozen, so that the narrower type is safe.
    action: _WarnOrStop = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower
        default="warn",
        description=(
            "What to do: `off`, `warn` or `stop` (the run fails). A lower learning rate would not help, so"
            " there is no `roll_back`."
        ),
    )
    share: Float = Field(
        default=0.3, gt=0, lt=1, description="Share of the time spent waiting for data that counts as idle."
    )
    steps: int = Field(default=50, ge=1, description="Number of consecutive steps that must be idle.")


class GuardsSettings(Settings):
    """Rules that watch a training run, each with its thresholds and its action."""

    non_finite: NonFiniteGuard = Field(
        default=NonFiniteGuard(), description="A loss or gradient that is nan or infinite."
    )
    loss_spike: LossSpikeGuard = Field(
        default=LossSpikeGuard(), description="A training loss far above the recent ones."
    )
    exploding_gradient: ExplodingGradientGuard = Field(
        default=ExplodingGradientGuard(), description="Gradients far beyond what is clipped."
    )
    dead_gradient: DeadGradientGuard = Field(
        default=DeadGradientGuard(), description="Gradients that have vanished."
    )
    no_progress: NoProgressGuard = Field(default=NoProgressGuard(), description="A loss that has not fallen.")
    overfitting: OverfittingGuard = Field(
        default=OverfittingGuard(), description="A validation loss that has risen above its best."
    )
    idle: IdleGuard = Field(default=IdleGuard(), description="An accelerator that waits for data.")
    more: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description=(
            "Guards of other packages by their registered names, each with its `action` and its own settings."
        ),
    )
    rate_factor: Float = Field(
        default=0.5, gt=0, lt=1, description="Factor on the learning rate after each roll-back."
    )
    max_roll_backs: int = Field(
        default=2,
        ge=0,
        le=100,
        description="Maximum number of roll-backs of a run; instead of one more, the run stops.",
    )


#: In the order in which they look at a step; of several findings with the same action the first one counts.
GUARDS: Registry[Any] = Registry(
    "guard",
    "fullft_assets.guards",
    {
        "non_finite": "fullft_assets.training.guards:NonFinite",
        "loss_spike": "fullft_assets.training.guards:LossSpike",
        "exploding_gradient": "fullft_assets.training.guards:ExplodingGradient",
        "dead_gradient": "fullft_assets.training.guards:DeadGradient",
        "no_progress": "fullft_assets.training.guards:NoProgress",
        "overfitting": "fullft_assets.training.guards:Overfitting",
        "idle": "fullft_assets.training.guards:Idle",
    },
)
#: Fields of `training.guards` that are not a guard.
_OTHER_FIELDS = ("more", "rate_factor", "max_roll_backs")
_OURS = [name for name in GuardsSettings.model_fields if name not in _OTHER_FIELDS]


def guard_settings(settings: GuardsSettings) -> dict[str, GuardSettings]:
    """Return the settings of each guard by its name, in the order in which the guards look at a step.

    Raises:
        SettingsError: `more` has a problem; see `guard_problems`.
    """
    for name, message in guard_problems(settings):
        raise SettingsError(f"training.guards.more.{name}: {message}")
    ours = {name: getattr(settings, name) for name in _OURS}
    return ours | {
        name: GUARDS.get(name).settings_class.model_validate(given) for name, given in settings.more.items()
    }


def guard_problems(settings: GuardsSettings) -> Iterator[tuple[str, str]]:
    """Yield (name, message) for each guard in `more` that is not registered, is one of ours, or does not have
    the given settings.
    """
    for name, given in settings.more.items():
        if name in _OURS:
            yield name, f"this guard is built in; give its settings below training.guards.{name}"
            continue
        try:
            GUARDS.get(name).settings_class.model_validate(given)
        except SettingsError as error:
            yield name, str(error)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield name, f"{'.'.join(map(str, first['loc'])) or name}: {first['msg']}"
