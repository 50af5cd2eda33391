"""Loads every use case below defs/; nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import dagster as dg
from dagster.components.core.defs_module import EXPLICITLY_IGNORED_GLOB_PATTERNS

from fullft_assets.automation import build_wrong
from fullft_assets.checking.parsing import unreadable
from fullft_assets.checking.project import find_defs, find_use_cases


@dg.definitions
def defs() -> dg.Definitions:
    """Return the use cases' definitions, run in one process: light steps, heavy work is launched."""
    loaded = load_use_cases(Path(__file__).parent)
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))


def load_use_cases(path_within_project: Path) -> dg.Definitions:
    """Return what `dg.load_from_defs_folder` does. A use case whose file Dagster cannot read is an asset with
    a failing check.
    """
    try:
        return dg.load_from_defs_folder(path_within_project=path_within_project)
    except Exception:
        folder = find_defs(path_within_project)
        places = find_use_cases(folder)
        problems = {place: problem for place in places if (problem := unreadable(place.path)) is not None}
        names = {place.path.parent.name for place in problems}
        # Ignored by name, a use case that is right would be lost with one that is not.
        if not problems or any(place.path.parent.name in names for place in places if place not in problems):
            raise
    with _without(names):
        loaded = dg.load_from_defs_folder(path_within_project=path_within_project)
    return dg.Definitions.merge(
        loaded, *(build_wrong(place, folder, problem) for place, problem in problems.items())
    )


@contextmanager
def _without(names: set[str]) -> Iterator[None]:
    """Have Dagster ignore the folders of these names."""
    before = [*EXPLICITLY_IGNORED_GLOB_PATTERNS]
    EXPLICITLY_IGNORED_GLOB_PATTERNS.extend(map(escape, names))
    try:
        yield
    finally:
        EXPLICITLY_IGNORED_GLOB_PATTERNS[:] = before
