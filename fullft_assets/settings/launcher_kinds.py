"""Launchers by name: `launcher.kind` of a use case chooses one.

A registered launcher is a class whose instances have the methods of `fullft_assets.launch.Launcher`; it is
made from an instance of its `settings_class`. The names are here, below the launchers themselves, because the
check of a YAML needs no more than them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from fullft_assets.errors import SettingsError
from fullft_assets.extras import problem_without
from fullft_assets.registry import Registry
from fullft_assets.settings import LauncherSettings, OtherLauncherSettings
from fullft_assets.settings.launcher import recorded_section

LAUNCHERS: Registry[Any] = Registry(
    "launcher",
    "fullft_assets.launchers",
    {
        "local": "fullft_assets.launch.local:LocalLauncher",
        "ssh": "fullft_assets.launch.ssh:SshLauncher",
        "kubernetes": "fullft_assets.launch.kubernetes:KubernetesLauncher",
        "sagemaker": "fullft_assets.launch.sagemaker:SageMakerLauncher",
        "ecs": "fullft_assets.launch.ecs:EcsLauncher",
        "ray": "fullft_assets.launch.ray:RayLauncher",
    },
)
#: The client's module by kind.
_CLIENTS = {"kubernetes": "kubernetes", "sagemaker": "boto3", "ecs": "boto3"}


def open_launcher(settings: LauncherSettings) -> Any:
    """Return the launcher of a section.

    Raises:
        SettingsError: there is none of this kind, or its package cannot be imported.
    """
    launcher = LAUNCHERS.get(settings.kind)
    return launcher(_checked(launcher, settings))


def open_recorded(section: Mapping[str, Any]) -> Any:
    """Return the launcher of a section on record.

    Raises:
        SettingsError: as above, or the section is that of another version.
    """
    try:
        return open_launcher(recorded_section(section))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, ("launcher", *problem["loc"])))
        raise SettingsError(f"{key} on record is not one of this version: {problem['msg']}") from None


def launcher_problems(settings: LauncherSettings) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for a client that is not installed, and for each key that the launcher of another
    package does not take.

    The keys of this package's launchers are checked with the YAML.
    """
    if settings.kind in _CLIENTS and (problem := problem_without(_CLIENTS[settings.kind])):
        yield "kind", problem
    if isinstance(settings, OtherLauncherSettings) and settings.kind in LAUNCHERS:
        try:
            _checked(LAUNCHERS.get(settings.kind), settings)
        except ValidationError as error:
            yield from (
                (str(problem_of_key["loc"][0]) if problem_of_key["loc"] else "kind", problem_of_key["msg"])
                for problem_of_key in error.errors(include_url=False)
            )


def _checked(launcher: Any, settings: LauncherSettings) -> LauncherSettings:
    if not isinstance(settings, OtherLauncherSettings):
        return settings
    return (launcher.settings_class or LauncherSettings).model_validate(
        settings.model_dump(exclude_unset=True)
    )
