"""Registrations: implementations of one protocol by name, ours and those of other packages.

Another package adds one through an entry point of its `pyproject.toml`, and a YAML names it:

    [project.entry-points."fullft_assets.formats"]
    mbox = "their_package.mbox:FORMAT"
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from fullft_assets.errors import SettingsError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations by name. Each is imported when it is first asked for, so that listing the names costs
    nothing.

    Args:
        kind: one of them, as messages call it, such as `format`.
        references: `module:attribute` by name.
    """

    def __init__(self, kind: str, group: str, references: Mapping[str, str]):
        self.kind = kind
        self.group = group
        self._ours = dict(references)
        self._loaded: dict[str, T] = {}

    @property
    def ours(self) -> list[str]:
        """The names that this package registers."""
        return list(self._ours)

    @property
    def names(self) -> list[str]:
        """All registered names: ours first, then those of other packages in alphabetical order."""
        return [*self._ours, *sorted(self._theirs)]

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._theirs

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def get(self, name: str) -> T:
        """Return the implementation of this name.

        Raises:
            SettingsError: there is none, or the package that registers it cannot be imported.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def all(self) -> dict[str, T]:
        """Return every implementation by name, in the order of `names`."""
        return {name: self.get(name) for name in self.names}

    @cached_property
    def _theirs(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._ours or point.name in points:
                raise SettingsError(
                    f"{self.kind} {point.name} of {_package(point)}: the name is taken; register it under"
                    " another one"
                )
            points[point.name] = point
        return points

    def _load(self, name: str) -> Any:
        if name in self._ours:
            return load_attribute(self._ours[name])
        if name not in self._theirs:
            raise SettingsError(
                f"unknown {self.kind} {name}: use one of {', '.join(self.names)}"
                f"{did_you_mean(name, self.names)}"
            )
        point = self._theirs[name]
        try:
            return point.load()
        except Exception as error:
            raise SettingsError(
                f"{self.kind} {name} of {_package(point)} cannot be imported ({error!r}); reinstall or"
                " remove it"
            ) from error


def load_attribute(reference: str) -> Any:
    """Return the object that `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else point.value
