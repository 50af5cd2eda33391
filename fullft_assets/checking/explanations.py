"""Explains what is wrong with a value of a use case's YAML: the value given, the values allowed and the
nearest of them.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fullft_assets.checking.yaml_source import Key, YamlSource
from fullft_assets.settings import LAUNCHER_SECTIONS, LauncherSettings, UseCaseSettings
from fullft_assets.settings.base import OneOf

BOUNDS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "min_length": "of at least {} items"}
#: How the patterns of names begin.
_NAMES = ("^[A-Za-z][", "^[a-z][")


def keys_named(message: str, source: YamlSource) -> list[Key]:
    """Return the `section.key` that a rule across sections names, those first that are in the file."""
    keys: list[Key] = [tuple(name.split(".")) for name in re.findall(r"\b[a-z_]+\.[a-z_]+\b", message)]
    settings_keys = [key for key in keys if field_of(key) is not None]
    return sorted(dict.fromkeys(settings_keys), key=lambda key: ("attributes", *key) not in source.lines)


def explain(error: Any, keys: list[Key], source: YamlSource) -> str:
    """Return one line: the value given, the values allowed and the nearest of them."""
    info = field_of(keys[0], source)
    if error["type"] in ("extra_forbidden", "unknown_name") or info is None:
        return str(error["msg"])
    if error["type"] == "value_error":
        values = ", ".join(f"{'.'.join(map(str, key))} is {given_value(key, source)}" for key in keys)
        rule = error["msg"].removeprefix("Value error, ").removeprefix(".".join(map(str, keys[0]))).strip()
        return f"{rule} ({values})"
    if error["type"] == "missing":
        return f"missing; {_described(info)}"
    value = given_value(keys[0], source)
    if error["input"] is None:
        return (
            f"empty; {_described(info)}" if info.is_required() else "empty; give a value or remove the line"
        )
    is_of_pattern = error["type"] == "string_pattern_mismatch" and not _pattern(info).startswith(_NAMES)
    if is_of_pattern or takes_several_types(info):
        return f"{value} does not fit; {_described(info)}"
    annotation = _item_type(info) if isinstance(keys[0][-1], int) else _plain_type(info.annotation)
    near = (
        did_you_mean(value, typing.get_args(annotation)) if typing.get_origin(annotation) is Literal else ""
    )
    hint = (
        "; put it in quotes"
        if annotation is str and error["type"] == "string_type" and not _registered(info)
        else ""
    )
    return f"{value} is not {_expected(annotation, info)}{near}{hint}"


def takes_several_types(info: FieldInfo) -> bool:
    """Return whether a setting takes values of several types, beside none."""
    is_union = typing.get_origin(info.annotation) in (typing.Union, types.UnionType)
    return is_union and sum(part is not type(None) for part in typing.get_args(info.annotation)) > 1


def allowed_values(info: FieldInfo) -> str:
    """Return in words what a setting takes: `a number > 0 and <= 1000`, `one of auto, csv`."""
    return _expected(_plain_type(info.annotation), info)


def _described(info: FieldInfo) -> str:
    if info.description:
        return info.description
    section = _plain_type(info.annotation)
    needed = [
        name for name, inner in section.model_fields.items() if inner.is_required() or name in section.USUAL
    ]
    return f"a section with {', '.join(f'`{name}`' for name in needed)}: {(section.__doc__ or '').strip()}"


def _registered(info: FieldInfo) -> list[str]:
    """Return the names that a setting may have out of a registry; none where it takes any text."""
    parts = [info.annotation, *info.metadata]
    for part in parts:
        if isinstance(part, OneOf):
            return part.names()
        parts += typing.get_args(part)
    return []


def _expected(annotation: Any, info: FieldInfo) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section; its keys: {', '.join(annotation.model_fields)}"
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(typing.get_args(annotation))}"
    if annotation is str and (names := _registered(info)):
        return f"one of {', '.join(names)}"
    if annotation is str:
        return (
            "a name of letters, digits and _ that starts with a letter"
            if _pattern(info).startswith(_NAMES)
            else "text"
        )
    nouns = {bool: "true or false", int: "a whole number", float: "a number"}
    bounds = [
        words.format(getattr(rule, name))
        for rule in info.metadata
        for name, words in BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return " ".join([nouns.get(annotation, "a list"), " and ".join(bounds)]).strip()


def _pattern(info: FieldInfo) -> str:
    return next((rule.pattern for rule in info.metadata if getattr(rule, "pattern", None)), "")


def given_value(key: Key, source: YamlSource) -> str:
    """Return in words the value in the file at a key."""
    at = ("attributes", *key)
    if at not in source.lines:
        info = field_of(key, source)
        return f"{info.get_default(call_default_factory=True)} by default" if info is not None else "missing"
    raw = source.raw.get(at)
    if raw is None:
        return "a list" if (*at, 0) in source.lines else "a section"
    return "an empty text" if raw == "" else raw if len(raw) <= 60 else f"{raw[:60]}..."


def field_of(key: Key, source: YamlSource | None = None) -> FieldInfo | None:
    """Return the setting that a key names, of an item of a list the list's; None where there is none.

    Args:
        source: says of which kind a launcher is, where several kinds have a key of this name.
    """
    model: Any = UseCaseSettings
    info = None
    for name in key:
        if isinstance(name, int):
            model = _item_type(info) if info is not None else None
            continue
        fields = getattr(model, "model_fields", {})
        if model is LauncherSettings:
            fields = _launcher_fields(key, source)
        if name not in fields:
            return None
        info = fields[name]
        model = _plain_type(info.annotation)
    return info


def _launcher_fields(key: Key, source: YamlSource | None) -> dict[str, FieldInfo]:
    """Return the keys of launchers of all kinds; those of the section's own kind count."""
    raw = {} if source is None else source.raw
    kind = raw.get(("attributes", *key[:-1], "kind")) or raw.get(("attributes", "launcher", "kind"))
    sections = [
        *reversed(LAUNCHER_SECTIONS.values()),
        LAUNCHER_SECTIONS.get(kind or "local", LauncherSettings),
    ]
    return {name: info for section in sections for name, info in section.model_fields.items()}


def _plain_type(annotation: Any) -> Any:
    """Return the type of `X | None` and of `list[X]` without its parameters."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_args(annotation)[:1] in ((str,), (float,)) and typing.get_origin(annotation) is Annotated:
        return typing.get_args(annotation)[0]
    return list if typing.get_origin(annotation) is list else annotation


def _item_type(info: FieldInfo) -> Any:
    parts = (info.annotation, *typing.get_args(info.annotation))
    return next((typing.get_args(part)[0] for part in parts if typing.get_origin(part) is list), None)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `; did you mean ...?` for the nearest of the choices, or an empty string where none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else ""
