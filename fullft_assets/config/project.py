"""Where use cases are: the project's root, its Dagster module, the `defs.yaml` of each use case by name."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fullft_assets.config.explanations import did_you_mean
from fullft_assets.config.yaml_source import read_source
from fullft_assets.errors import SettingsError

#: The use cases that this repository brings.
DEFS = Path(__file__).parents[1] / "defs"


def find_project_root(yaml_path: Path) -> Path:
    """Return the nearest folder above a YAML with a pyproject.toml, else the YAML's own folder."""
    folder = yaml_path.resolve().parent
    return next((parent for parent in (folder, *folder.parents) if (parent / "pyproject.toml").is_file()), folder)


@dataclass(frozen=True)
class DgProject:
    """A Dagster project, as its pyproject.toml defines it: its module, and the folder that it is imported from."""

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
        found = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise SettingsError(f"{path}: not TOML ({error})") from error
    module = found.get("tool", {}).get("dg", {}).get("project", {}).get("root_module")
    if module is None:
        return None
    source = root / "src"
    return DgProject(module, source if source.joinpath(*module.split(".")).is_dir() else root)


def find_defs(folder: Path) -> Path:
    """Return the folder with the use cases of the Dagster project around a folder, else of this package."""
    project = read_dg_project(find_project_root(folder / "defs.yaml"))
    if project is None or not project.defs.is_dir() or project.defs.samefile(DEFS):
        return DEFS
    return project.defs


def find_use_cases(defs_folder: Path = DEFS) -> list[Path]:
    """Return the `defs.yaml` of every use case below a folder, sorted; other components' files are excluded."""
    of_this_package = re.compile(r"^type:\s*[\"']?fullft_assets\b", re.MULTILINE)
    candidates = [*defs_folder.rglob("defs.yaml"), *defs_folder.rglob("defs.yml")]
    return sorted(path for path in candidates if of_this_package.search(path.read_text(encoding="utf-8", errors="replace")))


def find_use_case(name: str, defs_folder: Path = DEFS) -> Path:
    """Return the YAML of a use case by its name.

    Raises:
        SettingsError: there is no such use case; the message names the near and the known ones.
    """
    known = {_name_in(path): path for path in find_use_cases(defs_folder)}
    if name not in known:
        near = did_you_mean(name, known)
        listed = ", ".join(sorted(known)) or f"none in {defs_folder}"
        raise SettingsError(f"no use case `{name}`{near}{'' if near else ';'} known: {listed}")
    return known[name]


def _name_in(yaml_path: Path) -> str:
    try:
        value = read_source(yaml_path).value
    except SettingsError:
        value = None  # loading it reports what is wrong; until then its folder names it
    attributes = value.get("attributes") if isinstance(value, dict) else None
    name = attributes.get("name") if isinstance(attributes, dict) else None
    return name if isinstance(name, str) else yaml_path.parent.name


def fitting_name(folder: str) -> str:
    """Return the nearest valid use-case name to a folder's name."""
    name = re.sub(r"\W+", "_", folder, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"case_{name}".rstrip("_")
