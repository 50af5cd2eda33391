"""The registered guards of a training run: ours and those of other packages, by the names that a YAML gives them.

Another package registers a class with the protocol of `fullft_assets.engine.guards.Guard`:

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
from typing import Any

from pydantic import ValidationError

from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry
from fullft_assets.settings.schema import GuardSettings, GuardsSettings

#: In the order in which they look at a step; of several findings with the same action the first one counts.
GUARDS: Registry[Any] = Registry(
    "guard",
    "fullft_assets.guards",
    {
        "non_finite": "fullft_assets.engine.guards:NonFinite",
        "loss_spike": "fullft_assets.engine.guards:LossSpike",
        "exploding_gradient": "fullft_assets.engine.guards:ExplodingGradient",
        "dead_gradient": "fullft_assets.engine.guards:DeadGradient",
        "no_progress": "fullft_assets.engine.guards:NoProgress",
        "overfitting": "fullft_assets.engine.guards:Overfitting",
        "idle": "fullft_assets.engine.guards:Idle",
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
    return ours | {name: GUARDS.get(name).settings_class.model_validate(given) for name, given in settings.more.items()}


def guard_problems(settings: GuardsSettings) -> Iterator[tuple[str, str]]:
    """Yield (name, message) for each guard in `more` that is not registered, is one of ours, or does not have the given settings."""
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
