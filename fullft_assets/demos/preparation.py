"""Sample deliveries: real data from packages, written as a labelling job or an archive would deliver them,
and a real model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Demo:
    """A use case that this repository brings.

    Attributes:
        write: writes its data (and its model) below the project's root unless they are there.
        places: what it writes, relative to the project's root.
        brings_model: it writes a model too, which takes space, time and a package of its own.
    """

    write: Callable[[Path], None]
    places: tuple[str, ...]
    brings_model: bool = False


def _write_licences(root: Path) -> None:
    from fullft_assets.demos import licences

    licences.write(root / "data" / "licences")


def _write_licence_texts(root: Path) -> None:
    from fullft_assets.demos import smollm, standard_library

    # First what may be missing.
    smollm.write(root / "data" / "models" / "smollm2-135m")
    standard_library.write_licence_texts(root / "data" / "licence_texts")


_DEMOS = {
    "licences": _Demo(_write_licences, ("data/licences",)),
    "licence_texts": _Demo(
        _write_licence_texts, ("data/models/smollm2-135m", "data/licence_texts"), brings_model=True
    ),
}


def prepare(yaml_path: Path) -> bool:
    """Write the sample delivery of a shipped use case unless it is there; return whether it is one: others
    bring their own data.

    Raises:
        SettingsError: a package with the data or the model is not installed.
    """
    from fullft_assets.checking.project import find_project_root

    demo = _find(yaml_path)
    if demo is not None:
        demo.write(find_project_root(yaml_path))
    return demo is not None


def brings_model(yaml_path: Path) -> bool:
    """Return whether `prepare` would write a model for this use case."""
    demo = _find(yaml_path)
    return demo is not None and demo.brings_model


def is_dormant(yaml_path: Path) -> bool:
    """Return whether a use case is a demo that waits for `prepare` to write its model: until then it has no
    part in Dagster.
    """
    from fullft_assets.checking.project import find_project_root

    demo = _find(yaml_path)
    return (
        demo is not None
        and demo.brings_model
        and not all((find_project_root(yaml_path) / place).is_dir() for place in demo.places)
    )


def _find(yaml_path: Path) -> _Demo | None:
    from fullft_assets.checking.project import DEFS

    return _DEMOS.get(yaml_path.parent.name) if yaml_path.parent.parent.resolve() == DEFS.resolve() else None
