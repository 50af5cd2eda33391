"""The keys of a `defs.yaml` -> settings: unknown and missing keys, types, choices and bounds, all of them in one check."""

from __future__ import annotations

import copy
from itertools import takewhile
from typing import Any

from pydantic import ValidationError

from fullft_assets.config.explanations import did_you_mean, explain, field_of, given_value, keys_named
from fullft_assets.config.yaml_source import Key, YamlSource
from fullft_assets.settings import UseCaseSettings

COMPONENT = "fullft_assets.FullFineTune"
COMPONENT_TYPES = (COMPONENT, "fullft_assets.component.FullFineTune")
#: The keys of any Dagster component file.
COMPONENT_KEYS = ("type", "attributes", "template_vars_module", "requirements", "post_processing")


def parse(source: YamlSource) -> tuple[UseCaseSettings | None, set[Key]]:
    """Return the settings and the wrong keys, for which the settings have a default or a placeholder.

    What is wrong is taken out and the rest parsed again, so that one mistake never hides another.
    """
    data = _attributes(source)
    broken: set[Key] = set()
    while True:
        try:
            return UseCaseSettings.model_validate(data), broken
        except ValidationError as error:
            before = copy.deepcopy(data)
            for found in error.errors(include_url=False):
                keys = [found["loc"]] if found["loc"] else keys_named(found["msg"], source)
                if keys and not any(covers(key, keys[0]) for key in broken):
                    source.add(keys[0], explain(found, keys, source))
                broken.update(keys)
                for key in keys:
                    _take_out(data, key)
            if data == before:
                if broken:  # the placeholder of a wrong value does not match a pattern either
                    return None, broken
                source.add((), str(error.errors(include_url=False)[0]["msg"]))
                return None, broken


def _attributes(source: YamlSource) -> dict[str, Any]:
    """Check the file's top level and return a copy of the values below `attributes`."""
    if not isinstance(source.value, dict):
        source.fail(1, f"contains no use case; `dg scaffold defs {COMPONENT} NAME` writes one that runs")
    for name in source.value:
        if name in UseCaseSettings.model_fields and name not in COMPONENT_KEYS:
            source.add_at(source.lines[name,], (name,), "is at the top level; indent it below `attributes`")
        elif name not in COMPONENT_KEYS:
            hint = did_you_mean(name, COMPONENT_KEYS) or f"; known keys: {', '.join(COMPONENT_KEYS)}"
            source.add_at(source.lines[name,], (name,), f"unknown key `{name}`{hint}")
    if "type" not in source.value:
        source.add_at(1, ("type",), f"missing; write `type: {COMPONENT}`")
    elif source.value["type"] not in COMPONENT_TYPES:
        source.add_at(source.lines["type",], ("type",), f"{source.value['type']} is not {COMPONENT}")
    attributes = source.value.get("attributes")
    if attributes is not None and not isinstance(attributes, dict):
        source.add_at(source.lines["attributes",], ("attributes",), f"{given_value((), source)} is not a section with keys")
    return copy.deepcopy(attributes) if isinstance(attributes, dict) else {}


def _take_out(data: dict[str, Any], key: Key) -> None:
    """Remove a key, or put a placeholder where it is required, so that the rest can be checked; of a list, all of it."""
    names = [str(name) for name in takewhile(lambda name: isinstance(name, str), key)]
    *sections, last = names
    for name in sections:
        data = data.setdefault(name, {})
    data.pop(last, None)
    info = field_of(tuple(names))
    if info is not None and info.is_required():
        data[last] = "?" if info.annotation is str else {}


def covers(key: Key, other: Key) -> bool:
    """Return whether a key is another one or a section above it."""
    return other[: len(key)] == key
