"""A use case: its name, its checked settings, and where its relative paths start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fullft_assets.settings.schema import UseCaseSettings


@dataclass(frozen=True)
class UseCase:
    """A use case whose settings hold and whose paths exist."""

    name: str
    settings: UseCaseSettings
    yaml_path: Path
    project_root: Path

    def resolve(self, path: str) -> Path:
        """Return a path of the YAML as an absolute one; relative ones start at the project root. Documents: `open_source`."""
        return locate(path, self.project_root)


def locate(path: str, root: Path) -> Path:
    """Return where a path of a YAML lies: below the project's root unless it is absolute or begins at somebody's home.

    The home of nobody (`~data/x`) is a name like any other, and not found as such.
    """
    try:
        return root / Path(path).expanduser()
    except RuntimeError:
        return root / path
