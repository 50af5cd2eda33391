"""use case: a `defs.yaml` -> checked settings, or one line for each thing that is wrong with it.

A line reads `file:line: key: what is wrong; the fix`. Unknown and duplicate keys, types, choices and bounds
are found in one pass; what needs other keys or the disk (paths, the model) in the next one.
"""

import re
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from fullft_assets.checking.problems import data_problems, dependency_problems, validate
from fullft_assets.checking.project import (
    COMPONENT,
    find_project_root,
    fitting_name,
    is_use_case,
)
from fullft_assets.checking.yaml_source import (
    Key,
    YamlSource,
    explain,
    field_of,
    given_value,
    read_source,
    read_sources,
    takes_several_types,
)
from fullft_assets.errors import SettingsError, did_you_mean
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase

#: The keys of any Dagster component file.
COMPONENT_KEYS = ("type", "attributes", "template_vars_module", "requirements", "post_processing")


def load_use_case(yaml_path: Path, document: int = 0, *, with_data: bool = False) -> UseCase:
    """Read a use case's YAML and check it, its model included.

    Args:
        yaml_path: the file.
        document: number of the document in it.
        with_data: check the data that its paths name, too: it comes and goes, so definitions load without it.

    Raises:
        SettingsError: one line a problem, all of them in one message.
    """
    # Dagster loads all documents of a file, or none.
    for source_of_document in read_sources(yaml_path)[1:]:
        check_top_level(source_of_document)
        source_of_document.raise_problems()
    source = read_source(yaml_path, document)
    settings = parse(source)
    root = find_project_root(source.path)
    name = settings.name or source.path.parent.name
    all_problems = [
        *validate(settings, root),
        *dependency_problems(settings.documents.deps, name),
        *(data_problems(settings, root) if with_data else ()),
    ]
    if settings.name is None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        message = f"the folder's name `{name}` cannot name a use case; add `name: {fitting_name(name)}`"
        all_problems.append((("name",), message))
    for key, message in all_problems:
        source.add(key, message)
    source.raise_problems()
    return UseCase(name, settings, source.path, root, document)


def parse(source: YamlSource) -> UseCaseSettings:
    """Return the settings of a use case.

    Raises:
        SettingsError: one line for each key that is unknown or whose value does not fit.
    """
    check_top_level(source)
    _check_type(source)
    attributes = source.value.get("attributes")
    if not isinstance(attributes, dict):
        attributes = {}
    try:
        return UseCaseSettings.model_validate(attributes)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            key = _without_types(problem["loc"], attributes, source)
            source.add(key, explain(problem, key, source))
    source.raise_problems()
    raise AssertionError("what is wrong was raised")


def _without_types(loc: Key, value: Any, source: YamlSource) -> Key:
    """Return the key of a problem without the names of types that follow it where a setting takes several."""
    for end, name in enumerate(loc):
        info = field_of(loc[:end], source)
        has_key = isinstance(value, dict) or (isinstance(value, list) and isinstance(name, int))
        if not has_key or (info is not None and takes_several_types(info)):
            return loc[:end]
        if isinstance(value, dict) and name not in value:
            return loc
        value = value[cast(Any, name)]
    return loc


def check_top_level(source: YamlSource) -> None:
    """Add the problems outside of `attributes` to the source of any component.

    Raises:
        SettingsError: the document is no component.
    """
    if not isinstance(source.value, dict):
        source.fail(
            source.lines.get((), 1),
            f"contains no use case; `dg scaffold defs {COMPONENT} NAME` writes one that runs",
        )
    for name in source.value:
        if name in UseCaseSettings.model_fields and name not in COMPONENT_KEYS:
            source.add_at(source.lines[name,], (name,), "is at the top level; indent it below `attributes`")
        elif name not in COMPONENT_KEYS:
            hint = did_you_mean(name, COMPONENT_KEYS) or f"; known keys: {', '.join(COMPONENT_KEYS)}"
            source.add_at(source.lines[name,], (name,), f"unknown key `{name}`{hint}")
    if "type" not in source.value:
        source.add_at(source.lines[()], ("type",), f"missing; write `type: {COMPONENT}`")
    attributes = source.value.get("attributes")
    if attributes is not None and not isinstance(attributes, dict):
        source.add_at(
            source.lines["attributes",],
            ("attributes",),
            f"{given_value((), source)} is not a section with keys",
        )


def unreadable(yaml_path: Path) -> str | None:
    """Return the reason why Dagster cannot read a YAML file, whatever its `attributes` are, or None."""
    try:
        for source in read_sources(yaml_path) or [read_source(yaml_path)]:
            # Keys that are given twice, for instance, are no hindrance.
            source.problems.clear()
            check_top_level(source)
            _check_type(source, may_be_other=True)
            source.raise_problems()
    except SettingsError as error:
        return str(error)
    return None


def _check_type(source: YamlSource, may_be_other: bool = False) -> None:
    component_type = str(source.value.get("type", COMPONENT))
    try:
        is_other = may_be_other and not component_type.startswith("fullft_assets")
        if is_use_case(component_type, source.path) or is_other:
            return
        problem = f"{component_type} is not {COMPONENT}, nor a subclass of it"
    except SettingsError as error:
        problem = str(error)
    source.add_at(source.lines["type",], ("type",), problem)
