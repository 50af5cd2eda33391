"""yaml source: a YAML file as plain values that remember their lines, its problems as `file:line: key:
...`, and what is wrong with a value: the value given, the values allowed and the nearest of them.
"""

import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic.fields import FieldInfo
from yaml.reader import ReaderError

from fullft_assets.errors import SettingsError, did_you_mean
from fullft_assets.settings import LAUNCHER_SECTIONS, LauncherSettings, UseCaseSettings

#: The path of a key below `attributes`; items of a list by their number.
Key = tuple[str | int, ...]

MAPPING = "tag:yaml.org,2002:map"
SEQUENCE = "tag:yaml.org,2002:seq"
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
#: `env.NAME`, `env('NAME')` or `env('NAME', 'default')`.
_ENV = re.compile(r"""\s*env(?:\.(\w+)|\(\s*(['"])(\w+)\2\s*(?:,\s*(['"])(.*?)\4\s*)?\))\s*""")


@dataclass
class YamlSource:
    """A YAML file: its values, the line and the raw text of each key, and what is wrong so far.

    Keys here start at the file's top: `("attributes", "documents", "path")`.
    """

    path: Path
    value: typing.Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    raw: dict[Key, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, key: Key, message: str) -> None:
        """Add a problem with a key below `attributes`, at its line, or its section's where it is missing."""
        at: Key = ("attributes", *key)
        while at and at not in self.lines:
            at = at[:-1]
        self.add_at(self.lines.get(at, 1), key, message)

    def add_at(self, line: int, key: Key, message: str) -> None:
        """Add a problem at a line."""
        name = ".".join(map(str, key))
        self.problems.append((line, f"{name}: {message}" if name else message))

    def raise_problems(self) -> None:
        """Raise the problems, one line each in the order of the file. Return if there is none."""
        if self.problems:
            problems = sorted(self.problems, key=lambda problem: problem[0])
            raise SettingsError("\n".join(dict.fromkeys(self.located(*problem) for problem in problems)))

    def fail(self, line: int, message: str) -> typing.NoReturn:
        """Raise a problem after which nothing can be read."""
        raise SettingsError(self.located(line, message))

    def located(self, line: int, text: str) -> str:
        """Return a text behind the file and the line that it is about."""
        path = self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else self.path
        return f"{path}:{line}: {text}"


class _Loader(yaml.SafeLoader):
    """YAML as Dagster reads it: dates stay text."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def read_source(yaml_path: Path, document: int = 0) -> YamlSource:
    """Return one document of a YAML file; a document that is not there is empty.

    Raises:
        SettingsError: the file cannot be read, or is not YAML.
    """
    sources = read_sources(yaml_path)
    return sources[document] if document < len(sources) else YamlSource(yaml_path.resolve(), lines={(): 1})


def read_sources(yaml_path: Path) -> list[YamlSource]:
    """Return the documents (`---`) of a YAML file; keys given twice, and templates that cannot be resolved,
    are among their problems.

    Raises:
        SettingsError: the file cannot be read, or is not YAML.
    """
    source = YamlSource(yaml_path.resolve())
    sources: list[YamlSource] = []
    try:
        data = yaml_path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{yaml_path}: cannot be read ({error.strerror})") from None
    text = ""
    try:
        text = data.decode("utf-8-sig")
        loader = _Loader(text)
        while loader.check_node():
            sources.append(YamlSource(source.path))
            node = loader.get_node()
            assert node is not None, "check_node says that there is one"
            sources[-1].value = _construct(loader, node, (), sources[-1])
    except UnicodeDecodeError as error:
        source.fail(data[: error.start].count(b"\n") + 1, "not UTF-8; save the file as UTF-8")
    except ReaderError as error:
        source.fail(
            text[: error.position].count("\n") + 1,
            f"not YAML: character #x{ord(text[error.position]):04x} is not allowed",
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source.fail(mark.line + 1 if mark else 1, f"not YAML: {_syntax_message(error)}")
    except (RecursionError, ValueError) as error:  # an anchor in itself; a value that its own tag forbids
        source.fail(1, f"not YAML: {error}")
    return sources


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    message = str(error.problem)
    if "\\t" in message:
        return f"{message}; indent with spaces, not tabs"
    if "mapping values are not allowed" in message:
        return f"{message}; check the indentation, and quote a value that contains a colon"
    return (
        f"{error.context} in line {error.context_mark.line + 1}, {message}"
        if error.context and error.context_mark
        else message
    )


def _construct(loader: _Loader, node: yaml.Node, key: Key, source: YamlSource) -> typing.Any:
    source.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == MAPPING:
        line_of: dict[str, int] = {}
        for name, _ in node.value:
            text = str(name.value)
            line = name.start_mark.line + 1
            if text in line_of and text != "<<":
                inner = key[1:] if key[:1] == ("attributes",) else key
                source.add_at(line, (*inner, text), f"given twice, first in line {line_of[text]}; remove one")
            line_of.setdefault(text, line)
        loader.flatten_mapping(node)
        for name, _ in node.value:
            source.lines[*key, str(name.value)] = name.start_mark.line + 1
        return {
            str(name.value): _construct(loader, value, (*key, str(name.value)), source)
            for name, value in node.value
        }
    if isinstance(node, yaml.SequenceNode) and node.tag == SEQUENCE:
        return [_construct(loader, item, (*key, number), source) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        source.raw[key] = node.value
        # What is beside `attributes` is Dagster's alone.
        if key[:1] == ("attributes",) and "{{" in node.value:
            return _resolve(node.value, key, source)
    return loader.construct_object(node)


def _resolve(text: str, key: Key, source: YamlSource) -> str:
    """Return a text with its templates replaced by environment variables; what cannot be resolved is noted,
    and stays.
    """

    def replace(template: re.Match[str]) -> str:
        match = _ENV.fullmatch(template[1])
        if match is None:
            source.add(
                key[1:],
                f"{template[0]} cannot be resolved; write {{{{ env.NAME }}}} or {{{{ env('NAME', 'default')"
                " }}",
            )
            return template[0]
        name = match[1] or match[3]
        if (value := os.environ.get(name, match[5])) is None:
            source.add(
                key[1:],
                f"the environment variable {name} is not set; set it, or write {{{{ env('{name}', 'default')"
                " }}",
            )
            return template[0]
        return value

    return _TEMPLATE.sub(replace, text)


def explain(error: typing.Any, key: Key, source: YamlSource) -> str:
    """Return one line: the value given, and what pydantic or the description of the setting says of it."""
    info = field_of(key, source)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("extra_forbidden", "unknown_name", "value_error") or info is None:
        return message
    meaning = info.description or (_plain_type(info.annotation).__doc__ or "").strip()
    if error["type"] == "missing":
        return f"missing; {meaning}"
    if error["input"] is None:
        return "empty; give a value or remove the line"
    value = given_value(key, source)
    if error["type"] == "string_pattern_mismatch" or takes_several_types(info):
        return f"{value} does not fit; {meaning}"
    annotation = _item_type(info) if isinstance(key[-1], int) else _plain_type(info.annotation)
    choices = [choice for choice in typing.get_args(annotation) if isinstance(choice, str)]
    return f"{value}: {message}{did_you_mean(value, choices)}"


def takes_several_types(info: FieldInfo) -> bool:
    """Return whether a setting takes values of several types, beside none."""
    is_union = typing.get_origin(info.annotation) in (typing.Union, types.UnionType)
    return is_union and sum(part is not type(None) for part in typing.get_args(info.annotation)) > 1


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
    """Return the field of the settings that a key leads to (of an item of a list: the field of the list), or
    None if no field has the name.

    Args:
        source: the YAML, which says the kind of a launcher where several kinds have a key of this name.
    """
    model: typing.Any = UseCaseSettings
    info = None
    for name in key:
        if isinstance(name, int):
            model = _item_type(info) if info is not None else None
            continue
        is_launcher = model is LauncherSettings
        fields = _launcher_fields(key, source) if is_launcher else getattr(model, "model_fields", {})
        if name not in fields:
            return None
        info = fields[name]
        model = _plain_type(info.annotation)
    return info


def _launcher_fields(key: Key, source: YamlSource | None) -> dict[str, FieldInfo]:
    """Return the fields of the launchers of all kinds by key. Where several kinds have a key, it is the field
    of the section's kind.
    """
    raw = {} if source is None else source.raw
    kind = raw.get(("attributes", *key[:-1], "kind")) or raw.get(("attributes", "launcher", "kind"))
    sections = [
        *reversed(LAUNCHER_SECTIONS.values()),
        LAUNCHER_SECTIONS.get(kind or "local", LauncherSettings),
    ]
    return {name: info for section in sections for name, info in section.model_fields.items()}


def _plain_type(annotation: typing.Any) -> typing.Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _item_type(info: FieldInfo) -> typing.Any:
    parts = (info.annotation, *typing.get_args(info.annotation))
    return next((typing.get_args(part)[0] for part in parts if typing.get_origin(part) is list), None)
