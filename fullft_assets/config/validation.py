"""use case: a `defs.yaml` -> checked settings, or one line for each thing that is wrong with it.

A line reads `file:line: key: what is wrong; the mend`. Everything is found in the same check: unknown and
duplicate keys, types, choices, bounds, and what needs the disk (paths, the model). Only a YAML syntax
error stands alone: nothing after it can be read.
"""

from __future__ import annotations

import codecs
import copy
import encodings.aliases
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fullft_assets.base_model import own_code, read_header, resolve_base_model, suggest_path
from fullft_assets.config.cron import cron_problem
from fullft_assets.config.explanations import did_you_mean, explain, field_of, given_value, keys_named
from fullft_assets.config.yaml_source import Key, YamlSource, read_source
from fullft_assets.documents.formats import ENDINGS, is_readable
from fullft_assets.documents.sources import Folder
from fullft_assets.errors import DataError, SettingsError
from fullft_assets.examples.expectations import problems
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.contradictions import contradictions
from fullft_assets.settings.use_case import UseCase, locate

COMPONENT = "fullft_assets.FullFineTune"
COMPONENT_TYPES = (COMPONENT, "fullft_assets.component.FullFineTune")
#: The keys of any Dagster component file.
COMPONENT_KEYS = ("type", "attributes", "template_vars_module", "requirements", "post_processing")
#: The use cases that this repository brings.
DEFS = Path(__file__).parents[1] / "defs"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key below `attributes`, and one line with the mend."""

    key: Key
    message: str


def load_use_case(yaml_path: Path) -> UseCase:
    """Read a use case's YAML and check it, paths and model included.

    Raises:
        SettingsError: one line a problem, all of them in one message.
    """
    source = read_source(yaml_path)
    settings, broken = _parse(source)
    if settings is not None:
        for problem in _all_problems(settings, source.path, find_project_root(source.path)):
            if not any(_covers(key, problem.key) for key in broken):
                source.add(problem.key, problem.message)
    source.raise_problems()
    assert settings is not None
    return _use_case(settings, source.path)


def check_settings(settings: UseCaseSettings, yaml_path: Path, project_root: Path | None = None) -> UseCase:
    """Check settings that Dagster has already parsed; the YAML is read again for its line numbers.

    Args:
        settings: the component's attributes.
        yaml_path: the file that they stand in. Without such a file (a component written in Python)
            the messages carry no line.
        project_root: where relative paths start. Default: `find_project_root(yaml_path)`.

    Raises:
        SettingsError: one line a problem, all of them in one message.
    """
    source = read_source(yaml_path) if yaml_path.is_file() else YamlSource(yaml_path.resolve())
    root = project_root or find_project_root(source.path)
    for problem in _all_problems(settings, source.path, root):
        source.add(problem.key, problem.message)
    source.raise_problems()
    return _use_case(settings, source.path, root)


def find_project_root(yaml_path: Path) -> Path:
    """Return the nearest folder above a YAML that holds a pyproject.toml, else the YAML's own folder."""
    folder = yaml_path.resolve().parent
    return next((parent for parent in (folder, *folder.parents) if (parent / "pyproject.toml").is_file()), folder)


@dataclass(frozen=True)
class DgProject:
    """What a pyproject.toml says of a Dagster project: its module, and the folder that it is imported from."""

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
    """Return the `defs.yaml` of every use case below a folder, sorted; other components' files are left out."""
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


def validate(settings: UseCaseSettings, project_root: Path) -> list[Problem]:
    """Return what is wrong with settings beyond types and bounds: paths, model, crons, owners, labels."""
    checks = (
        _check_base_model,
        _check_documents,
        _check_monitoring,
        _check_examples,
        _check_general_words,
        _check_task,
        _check_optimizer,
        _check_launcher,
        _check_snapshot,
        _check_owners,
        _check_crons,
    )
    return [problem for check in checks for problem in check(settings, project_root)]


def _check_base_model(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    try:
        header = read_header(resolve_base_model(settings.base_model, root))
    except SettingsError as error:
        yield Problem(("base_model",), str(error))
        return
    if settings.trust_remote_code:
        try:
            own_code(header.folder)
        except SettingsError as error:
            yield Problem(("trust_remote_code",), str(error))
    given = settings.chunks.max_tokens
    if header.max_positions is not None and given > header.max_positions:
        yield Problem(
            ("chunks", "max_tokens"),
            f"{given} is more than the {header.max_positions} tokens that the base model reads; give at most that",
        )


def _check_documents(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    path = settings.documents.path
    problem = _place_problem(path, root)
    if problem is None and not _is_bucket(path):
        problem = _contents_problem(path, root)
    if problem is not None:
        yield Problem(("documents", "path"), problem)
    if settings.documents.queue is not None and not path.startswith("s3://"):
        yield Problem(
            ("documents", "queue"), f"a queue tells of objects on S3, but documents.path is {path}; remove it, or give s3://bucket/prefix"
        )

    if (encoding := settings.documents.encoding) is not None and not _is_encoding(encoding):
        known = set(encodings.aliases.aliases.values())
        near = (
            did_you_mean(encoding.lower().replace("-", "_"), sorted(filter(_is_encoding, known)))
            or "; give one such as cp1252, or leave it out"
        )
        yield Problem(("documents", "encoding"), f"{encoding} is no encoding of text{near}")


def _is_encoding(name: str) -> bool:
    try:
        # Some codecs decode no text: base64 is one.
        return codecs.lookup(name)._is_text_encoding
    except LookupError:
        return False


def _is_bucket(path: str) -> bool:
    # What lies there is not asked: definitions load often, and without a network.
    return re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*/?", path) is not None


def _place_problem(path: str, root: Path) -> str | None:
    """Return what is wrong with a path that documents may come from, or None."""
    folder = locate(path, root)
    if _is_bucket(path):
        return None
    if path.startswith("s3:"):
        return f"{path} is not s3://bucket/prefix; a bucket's name has 3 to 63 lower-case letters, digits, dots and dashes"
    if "://" in path:
        return f"{path} is neither a folder on this machine nor s3://bucket/prefix; copy or mount the documents and name that folder"
    if not folder.exists():
        mend = suggest_path(path, root) or "; relative paths start at the folder with pyproject.toml"
        return f"folder not found: {path}{mend}"
    if not folder.is_dir():
        return f"{path} is a file; name the folder that holds it: {Path(path).parent}"
    return None


def _contents_problem(path: str, root: Path) -> str | None:
    folder = locate(path, root)
    try:
        # Stops at the first one: a folder may hold 100,000 files, and definitions load often.
        if any(os.access(folder / file.path, os.R_OK) for file in Folder(folder).walk()):
            return None
    except DataError as error:
        return str(error)
    return f"no readable document below {path}; known endings: {', '.join(ENDINGS)}"


def _check_monitoring(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    path, key = settings.monitoring.path, ("monitoring", "path")
    if path is None:
        return
    folder = locate(path, root).resolve()
    if "://" in path or path.startswith("s3:") or folder.is_file():
        if (problem := _place_problem(path, root)) is not None:
            yield Problem(key, problem)
            return
    elif not folder.parent.is_dir():
        # The folder itself may still be missing: production has not delivered yet.
        near = suggest_path(str(Path(path).parent), root)
        yield Problem(key, f"folder not found: {Path(path).parent}{near or ', in which this folder could be made'}")
        return
    if _overlap(path, settings.documents.path, root):
        yield Problem(key, f"{path} overlaps documents.path ({settings.documents.path}); production documents need a folder apart")


def _overlap(path: str, other: str, root: Path) -> bool:
    if _is_bucket(path) != _is_bucket(other):
        return False
    if _is_bucket(path):
        one, two = (f"{url.rstrip('/')}/" for url in (path, other))
        return one.startswith(two) or two.startswith(one)
    folder, training = (locate(name, root).resolve() for name in (path, other))
    return folder.is_relative_to(training) or training.is_relative_to(folder)


def _check_snapshot(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    replay = settings.snapshot.replay
    named: list[tuple[Key, str]] = [(("snapshot", "screen", number), path) for number, path in enumerate(settings.snapshot.screen)]
    named += [(("snapshot", "replay", "path"), replay.path)] if replay is not None else []
    general = settings.snapshot.general
    named += [(("snapshot", "general", "path"), general.path)] if general is not None else []
    for key, path in named:
        if (problem := _external_problem(path, root)) is not None:
            yield Problem(key, problem)


def _external_problem(path: str, root: Path) -> str | None:
    """Return what is wrong with a file or folder of documents that are no delivery, or None; a bucket is asked when it is read."""
    place = locate(path, root)
    if place.is_file():
        return None if is_readable(place.name) else f"{path} has an ending that is not read; known endings: {', '.join(ENDINGS)}"
    if "://" not in path and not path.startswith("s3:") and not place.exists():
        return f"{path} not found{suggest_path(path, root) or '; relative paths start at the folder with pyproject.toml'}"
    return _place_problem(path, root) or (None if _is_bucket(path) else _contents_problem(path, root))


def _check_examples(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    examples = settings.examples
    if examples.label is None and examples.task in ("classification", "token_classification"):
        yield Problem(("examples", "label"), f"missing; {type(examples).model_fields['label'].description}")
    if examples.multi_label and examples.task != "classification":
        yield Problem(("examples", "multi_label"), f"is for the task classification, not for {examples.task}")
    if settings.snapshot.replay is not None and examples.task not in ("sft", "language_modeling"):
        yield Problem(("snapshot", "replay"), f"is for the tasks sft and language_modeling: {examples.task} has no loss on general text")
    if settings.chunks.stride and examples.task == "language_modeling":
        yield Problem(("chunks", "stride"), "is for tasks that pool the windows of a text: language_modeling would train its tokens twice")
    if examples.group is not None and examples.group == examples.label:
        yield Problem(("examples", "group"), f"{examples.group} is the label's field too; a split by label cannot be learned from")
    for number, label in enumerate(examples.labels or []):
        if label in (examples.labels or [])[:number]:
            yield Problem(("examples", "labels", number), f"{label} is listed twice; remove one")
    if examples.min_characters > examples.max_characters:
        yield Problem(
            ("examples", "min_characters"),
            f"{examples.min_characters} is more than examples.max_characters ({examples.max_characters})",
        )
    yield from (Problem(key, message) for key, message in problems(examples))


def _check_general_words(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    chosen, key = settings.chunks.general_words, ("chunks", "general_words")
    if chosen is None:
        return
    # Definitions load often, and hardly any names a list.
    from fullft_assets.chunks import general_words

    if settings.chunks.terms:
        yield Problem(key, "is for terms that are mined, and chunks.terms lists them; remove one of the two")
    elif (problem := general_words.problem(chosen, root)) is not None:
        yield Problem(key, problem)


def _check_task(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    metric, examples = settings.primary_metric, settings.examples
    task = f"{examples.task} with several labels a row" if examples.multi_label else examples.task
    if settings.training.balance_labels and not examples.has_one_label:
        why = {
            "classification": "the thresholds of several are fixed on the validation rows",
            "token_classification": "most tokens have none",
        }.get(examples.task, f"{task} has no labels")
        yield Problem(("training", "balance_labels"), f"is for the task classification with one label a row: {why}; remove it")
    yield from _check_distillation(settings)
    if settings.training.ewc and settings.snapshot.general is None and settings.snapshot.replay is None:
        what = "snapshot.replay or snapshot.general" if examples.task in ("sft", "language_modeling") else "snapshot.general"
        yield Problem(("training", "ewc"), f"needs general text to tell which weights matter to it; give {what} a path, or remove it")
    for number, alpha in enumerate(settings.training.wise_ft):
        if alpha in settings.training.wise_ft[:number]:
            yield Problem(("training", "wise_ft", number), f"{alpha:g} is listed twice; remove one")
    if settings.training.max_general_rise is not None and settings.snapshot.general is None:
        yield Problem(("training", "max_general_rise"), "is measured on snapshot.general, which is not set; give it a path, or remove this")
    if metric not in examples.metrics:
        yield Problem(
            ("evaluation", "primary_metric"), f"{metric} is not a metric of the task {task}; give {' or '.join(examples.metrics)}"
        )
    if settings.release.max_calibration_error is not None and not examples.has_one_label:
        yield Problem(
            ("release", "max_calibration_error"),
            f"is for the task classification with one label a row: for {task} it is not measured; remove it",
        )


def _check_optimizer(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for key, message in contradictions(settings.training, settings.launcher.processes):
        yield Problem(key, message)


def _check_distillation(settings: UseCaseSettings) -> Iterator[Problem]:
    chosen, has_replay = settings.training.distillation, settings.snapshot.replay is not None
    if chosen is None:
        return
    key: Key = ("training", "distillation")
    if settings.examples.task in ("classification", "token_classification"):
        if chosen.tokens is not None:
            yield Problem((*key, "tokens"), "is for the tasks sft and language_modeling: of a classifier all rows are taught; remove it")
        if chosen.temperature != 1:
            yield Problem((*key, "temperature"), "is for the tasks sft and language_modeling: representations have none; remove it")
    elif chosen.tokens == "replay" and not has_replay:
        yield Problem((*key, "tokens"), "replay names documents that snapshot.replay does not; give it a path, or teach `all` or `task`")
    if chosen.weight == 1 and (chosen.tokens in ("task", "all") or not has_replay):
        yield Problem((*key, "weight"), "1 leaves nothing to learn of the task itself; give less, or teach the tokens of replay alone")


def _check_launcher(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    launcher = settings.launcher
    if launcher.spot_notice == "none" and launcher.spot_poll_seconds != type(launcher).model_fields["spot_poll_seconds"].default:
        yield Problem(
            ("launcher", "spot_poll_seconds"), "is the time between looks for launcher.spot_notice, which is none; set that, or remove this"
        )


def _check_owners(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for number, owner in enumerate(settings.owners):
        if not re.fullmatch(r"team:.+|[^@\s]+@[^@\s]+\.[^@\s.]+", owner):
            yield Problem(("owners", number), f"{owner} is neither an e-mail address nor `team:NAME`")


def _check_crons(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for name in ("schedule", "evaluation_schedule"):
        cron = getattr(settings.retraining, name)
        if (problem := cron_problem(cron)) is not None:
            yield Problem(
                ("retraining", name),
                f"{cron} is not a cron ({problem}); such as `0 3 * * 0`: minute hour day month weekday",
            )


def _all_problems(settings: UseCaseSettings, yaml_path: Path, root: Path) -> list[Problem]:
    problems = validate(settings, root)
    if yaml_path.parent.parent == DEFS:
        problems = [_with_demo_mend(problem, yaml_path.parent.name) for problem in problems]
    folder = yaml_path.parent.name
    if settings.name is None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", folder):
        mend = f"add `name: {fitting_name(folder)}`"
        problems.append(Problem(("name",), f"the folder's name `{folder}` cannot name a use case; {mend}"))
    return problems


def _with_demo_mend(problem: Problem, demo: str) -> Problem:
    # A demo's documents, and its model, are no part of the package: on a fresh checkout they have yet to be written.
    if problem.key not in (
        ("base_model",),
        ("documents", "path"),
        ("monitoring", "path"),
        ("snapshot", "replay", "path"),
        ("snapshot", "general", "path"),
    ):
        return problem
    return Problem(problem.key, f"{problem.message}; `fullft prepare {demo}` writes the demo's")


def fitting_name(folder: str) -> str:
    """Return the nearest valid use-case name to a folder's name."""
    name = re.sub(r"\W+", "_", folder, flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() else f"case_{name}".rstrip("_")


def _use_case(settings: UseCaseSettings, yaml_path: Path, root: Path | None = None) -> UseCase:
    return UseCase(settings.name or yaml_path.parent.name, settings, yaml_path, root or find_project_root(yaml_path))


def _name_in(yaml_path: Path) -> str:
    try:
        value = read_source(yaml_path).value
    except SettingsError:
        value = None  # Loading it will tell what is wrong; until then its folder names it.
    attributes = value.get("attributes") if isinstance(value, dict) else None
    name = attributes.get("name") if isinstance(attributes, dict) else None
    return name if isinstance(name, str) else yaml_path.parent.name


def _parse(source: YamlSource) -> tuple[UseCaseSettings | None, set[Key]]:
    """Return the settings and the keys found wrong, which the settings hold a default or a placeholder for.

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
                if keys and not any(_covers(key, keys[0]) for key in broken):
                    source.add(keys[0], explain(found, keys, source))
                broken.update(keys)
                for key in keys:
                    _take_out(data, key)
            if data == before:
                source.add((), str(error.errors(include_url=False)[0]["msg"]))
                return None, broken


def _attributes(source: YamlSource) -> dict[str, Any]:
    """Check the file's top level and return a copy of what stands below `attributes`."""
    if not isinstance(source.value, dict):
        source.fail(1, f"holds no use case; `dg scaffold defs {COMPONENT} NAME` writes one that runs")
    for name in source.value:
        if name in UseCaseSettings.model_fields and name not in COMPONENT_KEYS:
            source.add_at(source.lines[name,], (name,), "stands at the top; indent it below `attributes`")
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
    """Remove a key, or put a placeholder where it is required, so that the rest can be checked."""
    *sections, last = [name for name in key if isinstance(name, str)]
    for name in sections:
        data = data.setdefault(name, {})
    data.pop(last, None)
    info = field_of(key)
    if info is not None and info.is_required():
        data[last] = "?" if info.annotation is str else {}


def _covers(key: Key, other: Key) -> bool:
    return other[: len(key)] == key
