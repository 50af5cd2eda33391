"""Where use cases are: the project's root, its Dagster module, the `defs.yaml` of each use case by name."""

import importlib
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fullft_assets.checking.yaml_source import read_source, read_sources
from fullft_assets.errors import SettingsError, did_you_mean

#: The use cases that this repository brings.
DEFS = Path(__file__).parents[1] / "defs"
COMPONENT = "fullft_assets.FullFineTune"
_COMPONENT_TYPES = (COMPONENT, "fullft_assets.component.FullFineTune")
_TYPE = re.compile(r"^type:\s*[\"']?([\w.]+)", re.MULTILINE)


class Place(NamedTuple):
    """Where a use case is written: a YAML file, and the number of the document in it."""

    path: Path
    document: int = 0


def find_project_root(yaml_path: Path) -> Path:
    """Return the nearest folder above a YAML with a pyproject.toml, else the YAML's own folder."""
    folder = yaml_path.resolve().parent
    return next(
        (parent for parent in (folder, *folder.parents) if (parent / "pyproject.toml").is_file()), folder
    )


@dataclass(frozen=True)
class DgProject:
    """A Dagster project, as its pyproject.toml defines it: its module, and the folder that it is imported
    from.
    """

    root_module: str
    source: Path

    @property
    def defs(self) -> Path:
        """The folder with the project's components."""
        return self.source.joinpath(*self.root_module.split("."), "defs")


def read_dg_project(root: Path) -> DgProject | None:
    """Return the Dagster project in a folder, or None if its pyproject.toml names none.

    Raises:
        SettingsError: the file is not TOML.
    """
    path = root / "pyproject.toml"
    try:
        configuration = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SettingsError(f"{path}: not TOML ({error})") from error
    module = configuration.get("tool", {}).get("dg", {}).get("project", {}).get("root_module")
    if module is None:
        return None
    source = root / "src"
    return DgProject(module, source if source.joinpath(*module.split(".")).is_dir() else root)


def find_defs(folder: Path) -> Path:
    """Return the folder with the use cases of the Dagster project around a folder, else of this package."""
    project = read_dg_project(find_project_root(folder / "defs.yaml"))
    return (
        DEFS if project is None or not project.defs.is_dir() or project.defs.samefile(DEFS) else project.defs
    )


def find_use_cases(defs_folder: Path = DEFS) -> list[Place]:
    """Return the place of every use case below a folder, sorted; other components are excluded.

    A file that is no component, or one of a type that cannot be imported, counts as a use case: it keeps
    Dagster from loading the others, and loading it says what is wrong.
    """
    return sorted(location for locations in _use_cases(defs_folder).values() for location in locations)


def find_use_case(name: str, defs_folder: Path = DEFS) -> Place:
    """Return the place of a use case by its name.

    Raises:
        SettingsError: there is no such use case; the message names the near and the known ones. Or there are
            two.
    """
    locations_of = _use_cases(defs_folder)
    if name not in locations_of:
        hint = did_you_mean(name, locations_of) or ";"
        names = ", ".join(sorted(locations_of)) or f"none in {defs_folder}"
        raise SettingsError(f"no use case `{name}`{hint} known: {names}")
    require_own_name(name, locations_of[name][0], defs_folder)
    return locations_of[name][0]


def require_own_name(name: str, location: Place, defs_folder: Path) -> None:
    """Raise SettingsError where another use case below the folder has the name: its assets and its artifacts
    would be the same.
    """
    for twin in _use_cases(defs_folder).get(name, []):
        if twin != location:
            source = read_source(*location)
            source.add(
                ("name",),
                f"the use case in {twin.path}, document {twin.document + 1}, is named {name}, too; give one"
                " another `name`",
            )
            source.raise_problems()


def is_use_case(component_type: str, yaml_path: Path) -> bool:
    """Return whether a component's `type` is FullFineTune or a subclass of it.

    Raises:
        SettingsError: the type of somebody's own cannot be imported.
    """
    # No library of Dagster is imported just to find out that it has no use case.
    if not component_type or component_type.startswith(("fullft_assets.", "dagster.", "dagster_")):
        return component_type in _COMPONENT_TYPES
    project = read_dg_project(find_project_root(yaml_path))
    if project is not None and str(project.source) not in sys.path:
        sys.path.append(str(project.source))
    if project is not None and component_type.startswith("."):
        folder = yaml_path.resolve().parent.relative_to(project.source.resolve())
        component_type = ".".join(folder.parts) + component_type
    module, _, name = component_type.rpartition(".")
    try:
        bases = getattr(importlib.import_module(module), name).__mro__
    except Exception as error:  # whatever the module of somebody's own raises
        raise SettingsError(
            f"{component_type} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    return any(f"{base.__module__}.{base.__qualname__}" in _COMPONENT_TYPES for base in bases)


def _use_cases(defs_folder: Path) -> Mapping[str, list[Place]]:
    paths = sorted([*defs_folder.rglob("defs.yaml"), *defs_folder.rglob("defs.yml")])
    return _read_use_cases(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths))


@lru_cache(maxsize=1)
def _read_use_cases(files: tuple[tuple[Path, int, int], ...]) -> Mapping[str, list[Place]]:
    """Read YAML files as `_use_cases` returns them. The last result is cached, since loading definitions
    calls this once for each use case.

    Args:
        files: path, time and size of each.
    """
    locations_of: dict[str, list[Place]] = {}
    for path, _, _ in files:
        for number, (component_type, name) in enumerate(_documents_in(path)):
            try:
                # Whatever begins so is meant to be one.
                is_meant = component_type.startswith("fullft_assets") or is_use_case(component_type, path)
            except SettingsError:
                is_meant = True
            if is_meant or not component_type:
                locations_of.setdefault(name, []).append(Place(path, number))
    return locations_of


def _documents_in(yaml_path: Path) -> list[tuple[str, str]]:
    """Return the type, empty where there is none, and the name of each component in a file. For a file that
    cannot be parsed, return the first type and the folder's name.
    """
    folder = yaml_path.parent.name
    try:
        values = [source.value for source in read_sources(yaml_path)]
    except SettingsError:  # loading it reports what is wrong; until then its folder names it
        types = _TYPE.findall(yaml_path.read_text(encoding="utf-8-sig", errors="replace"))
        return [(next(iter(types), ""), folder)]
    types_and_names = []
    for document in (value if isinstance(value, dict) else {} for value in values or [{}]):
        attributes = document.get("attributes")
        name = attributes.get("name") if isinstance(attributes, dict) else None
        types_and_names.append((str(document.get("type", "")), name if isinstance(name, str) else folder))
    return types_and_names


def name_at(location: Place) -> str:
    """Return a name for the use case at a location, even if the YAML cannot be parsed. It is a valid name of
    a group of Dagster.
    """
    return fitting_name(_documents_in(location.path)[location.document][1])


def fitting_name(folder: str) -> str:
    """Return the nearest valid use-case name to a folder's name."""
    name = re.sub(r"\W+", "_", folder, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"case_{name}".rstrip("_")
