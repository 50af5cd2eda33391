"""Loads every use case below defs/; nothing else."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import dagster as dg
from dagster.components.core.defs_module import EXPLICITLY_IGNORED_GLOB_PATTERNS, ComponentPostProcessingModel
from pydantic import TypeAdapter, ValidationError

from fullft_assets.checking.project import Place, find_defs, find_use_cases
from fullft_assets.checking.validation import unreadable
from fullft_assets.checking.yaml_source import Key, YamlSource, read_sources
from fullft_assets.component import build_wrong
from fullft_assets.errors import SettingsError


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
        problem_of = {place: unreadable(place.path) or wrong_post_processing(place.path) for place in places}
        if not any(problem_of.values()):
            problem_of = {place: _unloadable(place, places) for place in places}
        problems = {place: problem for place, problem in problem_of.items() if problem is not None}
        names = {place.path.parent.name for place in problems}
        # Ignored by name, a use case that is right would be lost with one that is not.
        if not problems or any(place.path.parent.name in names for place in places if place not in problems):
            raise
    with _without(names):
        loaded = dg.load_from_defs_folder(path_within_project=path_within_project)
    return dg.Definitions.merge(
        loaded, *(build_wrong(place, folder, problem) for place, problem in problems.items())
    )


def problem_of_post_processing(place: Place) -> str | None:
    """Return why Dagster cannot apply the section `post_processing` of a use case's file, or None."""
    if not any("post_processing" in source.value for source in read_sources(place.path)):
        return None
    return wrong_post_processing(place.path) or _unloadable(place, find_use_cases(find_defs(place.path)))


def _unloadable(place: Place, places: Iterable[Place]) -> str | None:
    """Return why Dagster cannot load a use case without the others, or None."""
    with _without({each.path.parent.name for each in places} - {place.path.parent.name}):
        try:
            dg.load_from_defs_folder(path_within_project=place.path)
        except Exception as error:
            while isinstance(error.__cause__, Exception):
                error = error.__cause__
            # Dagster's message of a template ends with what went wrong.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = lines[-1] if lines else type(error).__name__
            return f"{place.path}: Dagster cannot load it ({said}); look at its templates, {{{{ ... }}}}"
    return None


def wrong_post_processing(yaml_path: Path) -> str | None:
    """Return what Dagster does not take in the section `post_processing` of a YAML file, or None."""
    schema = TypeAdapter(ComponentPostProcessingModel.model())
    try:
        for source in read_sources(yaml_path):
            try:
                schema.validate_python(source.value.get("post_processing") or {})
            except ValidationError as error:
                located = [(_key_in(source, each["loc"]), each["msg"]) for each in error.errors()]
                # Of a section that may have one of several forms, the nearest form is meant.
                depth = max(len(key) for key, _ in located)
                for key, message in located:
                    if len(key) == depth:
                        source.add_at(source.lines[key], key, message)
            source.raise_problems()
    except SettingsError as error:
        return str(error)
    return None


def _key_in(source: YamlSource, location: tuple[str | int, ...]) -> Key:
    """Return the key of a YAML file that a location of pydantic means, which names forms of sections, too."""
    key: Key = ("post_processing",)
    for name in location:
        key = (*key, name) if (*key, name) in source.lines else key
    return key


@contextmanager
def _without(names: set[str]) -> Iterator[None]:
    before = [*EXPLICITLY_IGNORED_GLOB_PATTERNS]
    EXPLICITLY_IGNORED_GLOB_PATTERNS.extend(map(escape, names))
    try:
        yield
    finally:
        EXPLICITLY_IGNORED_GLOB_PATTERNS[:] = before
