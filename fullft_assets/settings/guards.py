"""The setting `training.guards`, and the registered guards of a training run: ours and those of other
packages.

Another package registers a class with the protocol of `fullft_assets.training.guards.Guard`:

    [project.entry-points."fullft_assets.guards"]
    slow_steps = "their_package.guards:SlowSteps"

and a use case gives it an action by its name, with the guard's own settings if it has any:

    training:
      guards:
        slow_steps: {action: warn, min_tokens_per_second: 100}
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema

from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry
from fullft_assets.settings.base import Settings, YamlOff

GuardAction = Annotated[Literal["off", "warn", "roll_back", "stop"], YamlOff()]


class GuardSettings(Settings):
    """Base of the settings of a guard: the action that follows when it fires. A guard of another package may
    add its own.
    """

    action: GuardAction = Field(
        default="warn",
        description=(
            "What to do: `off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate) or"
            " `stop` (the run fails)."
        ),
    )


class RollsBack(GuardSettings):
    """The settings of a guard that rolls back by default."""

    action: GuardAction = "roll_back"


#: In the order in which they look at a step; of several findings with the same action the first one counts.
GUARDS: Registry[Any] = Registry(
    "guard",
    "fullft_assets.guards",
    {
        "non_finite": "fullft_assets.training.guards:NonFinite",
        "loss_spike": "fullft_assets.training.guards:LossSpike",
        "no_progress": "fullft_assets.training.guards:NoProgress",
        "overfitting": "fullft_assets.training.guards:Overfitting",
    },
)
#: Keys of `training.guards` in earlier releases, with what to do instead; manifests may have recorded them.
_REMOVED = {
    "dead_gradient": "`no_progress` warns of a loss that stays, and loss_is_falling stops the model",
    "exploding_gradient": "gradients are clipped; `loss_spike` and `non_finite` guard what follows",
    "idle": "rows are read from memory, so that an accelerator does not wait for them",
    "more": "name the guard beside the others",
    "rate_factor": "each roll-back halves the learning rate",
    "max_roll_backs": "the second roll-back of a run is its last",
}


_ACTIONS = {"enum": ["off", "warn", "roll_back", "stop", False]}
#: The type of the setting: an action, or the settings of a guard of another package, by the guard's name.
#: What is wrong with them is found by `guard_problems`.
Guards = Annotated[
    dict[str, Any],
    # YAML 1.1 reads a bare `off` as false.
    AfterValidator(
        lambda guards: {name: "off" if value is False else value for name, value in guards.items()}
    ),
    WithJsonSchema(
        {
            "type": "object",
            "properties": dict.fromkeys(GUARDS.ours, _ACTIONS),
            "additionalProperties": {"anyOf": [_ACTIONS, {"type": "object"}]},
        }
    ),
]


def guard_settings(guards: Guards) -> dict[str, GuardSettings]:
    """Return the settings of each guard by its name, in the order in which the guards look at a step.

    Raises:
        SettingsError: the settings of one have a problem; see `guard_problems`.
    """
    for name, message in guard_problems(guards):
        raise SettingsError(f"training.guards.{name}: {message}")
    names = [name for name in GUARDS.names if name in GUARDS.ours or name in guards]
    return {name: _settings_of(name, guards.get(name, {})) for name in names}


def guard_problems(guards: Guards) -> Iterator[tuple[str, str]]:
    """Yield (name, message) for each guard that is not registered, or does not have the given settings."""
    for name, value in guards.items():
        if name in _REMOVED:
            yield name, f"`{name}` was removed; {_REMOVED[name]}"
            continue
        try:
            _settings_of(name, value)
        except SettingsError as error:
            yield name, str(error)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            yield name, f"{'.'.join(map(str, first['loc'])) or name}: {first['msg']}"


def _settings_of(name: str, value: Any) -> GuardSettings:
    settings_class = GUARDS.get(name).settings_class
    if name in GUARDS.ours and value and isinstance(value, Mapping):
        raise SettingsError("its thresholds were removed; give the action alone, such as `stop`")
    return settings_class.model_validate(value if isinstance(value, Mapping) else {"action": value})
