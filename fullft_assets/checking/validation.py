"""use case: a `defs.yaml` -> checked settings, or one line for each thing that is wrong with it.

A line reads `file:line: key: what is wrong; the fix`. Everything is found in the same check: unknown and
duplicate keys, types, choices, bounds, and what needs the disk (paths, the model). Only a YAML syntax
error is reported alone: nothing after it can be read.
"""

from __future__ import annotations

import encodings.aliases
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fullft_assets.alerts import channel_problems
from fullft_assets.base_model import BaseModelHeader, own_code, read_header, resolve_base_model, suggest_path
from fullft_assets.checking.cron import cron_problem
from fullft_assets.checking.explanations import did_you_mean
from fullft_assets.checking.parsing import check_top_level, covers, parse
from fullft_assets.checking.places import (
    address_problem,
    contents_problem,
    external_problem,
    is_bucket,
    overlap,
    place_problem,
    without_credentials,
)
from fullft_assets.checking.project import DEFS, DEMOS, find_project_root, fitting_name
from fullft_assets.checking.yaml_source import Key, YamlSource, read_source, read_sources
from fullft_assets.documents.formats import FORMATS, office
from fullft_assets.documents.formats.encodings import is_encoding
from fullft_assets.errors import SettingsError
from fullft_assets.examples.expectations import problems
from fullft_assets.extras import problem_without
from fullft_assets.jobs.launchers import LAUNCHERS, launcher_problems
from fullft_assets.settings import MODELS, LauncherSettings, UseCaseSettings
from fullft_assets.settings.contradictions import contradictions
from fullft_assets.settings.guards import guard_problems
from fullft_assets.settings.use_case import UseCase, locate
from fullft_assets.task import BASELINES, GATES, METRICS, TASKS, Task, task_of


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key below `attributes`, and one line with the fix."""

    key: Key
    message: str


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
    for other in read_sources(yaml_path)[1:]:
        check_top_level(other)
        other.raise_problems()
    source = read_source(yaml_path, document)
    settings, broken = parse(source)
    if settings is not None:
        root = find_project_root(source.path)
        for problem in (
            *_all_problems(settings, source.path, root),
            *(_data_problems(settings, source.path, root) if with_data else ()),
        ):
            if not any(covers(key, problem.key) for key in broken):
                source.add(problem.key, problem.message)
    source.raise_problems()
    assert settings is not None
    return _use_case(settings, source.path, document=document)


def check_settings(settings: UseCaseSettings, yaml_path: Path, project_root: Path | None = None) -> UseCase:
    """Check settings that Dagster has already parsed; the YAML is read again for its line numbers.

    Args:
        settings: the component's attributes.
        yaml_path: the file that they are in. Without such a file (a component written in Python)
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


def validate(settings: UseCaseSettings, project_root: Path) -> list[Problem]:
    """Return what is wrong with settings beyond types and bounds, whatever data there is: formats, model,
    crons, labels.
    """
    checks = (
        _check_base_model,
        _check_documents,
        _check_monitoring,
        _check_examples,
        _check_pii_model,
        _check_task,
        _check_optimizer,
        _check_guards,
        _check_alerts,
        _check_aws,
        _check_launcher,
        _check_isolation,
        _check_snapshot,
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
    max_tokens = settings.chunks.max_tokens
    if header.max_positions is not None and max_tokens > header.max_positions:
        yield Problem(
            ("chunks", "max_tokens"),
            f"{max_tokens} is more than the {header.max_positions} tokens that the base model reads; give at"
            " most that",
        )
    yield from _check_smaller_model(settings, header, root)
    if not header.may_predict_tokens:
        for number, name in enumerate(settings.planning.baselines or []):
            if BASELINES.get(name).needs_causal_model:
                yield Problem(
                    ("planning", "baselines", number),
                    f"{name} prompts a language model, and base_model is a {header.architectures[0]}; remove"
                    " it, or use a causal model",
                )


def _check_smaller_model(settings: UseCaseSettings, header: BaseModelHeader, root: Path) -> Iterator[Problem]:
    reference = settings.planning.smaller_model
    names = settings.baselines
    key = ("planning", "smaller_model")
    if reference is None:
        if "smaller_model" in names:
            yield Problem(
                ("planning", "baselines"),
                "names smaller_model, and planning.smaller_model does not say which; give one, or remove it",
            )
        return
    if "smaller_model" not in names:
        yield Problem(
            key,
            f"planning.baselines does not name smaller_model; set it to [{', '.join(names)}, smaller_model],"
            " or remove this",
        )
    try:
        smaller = read_header(resolve_base_model(reference, root))
    except SettingsError as error:
        yield Problem(key, str(error))
        return
    if smaller.num_parameters >= header.num_parameters:
        yield Problem(
            key,
            f"it has {smaller.num_parameters:,} weights, base_model {header.num_parameters:,}; give a"
            " smaller one",
        )


def _check_documents(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    path = settings.documents.path
    if (problem := address_problem(path)) is not None:
        yield Problem(("documents", "path"), problem)
    if settings.documents.queue is not None and not path.startswith("s3://"):
        yield Problem(
            ("documents", "queue"),
            f"a queue reports objects on S3, but documents.path is {without_credentials(path)}; remove it, or"
            " give s3://bucket/prefix",
        )
    format_ = settings.documents.format
    if format_ != "auto" and format_ not in FORMATS:
        known_names = ["auto", *FORMATS]
        yield Problem(
            ("documents", "format"),
            f"{format_} is not one of {', '.join(known_names)}{did_you_mean(format_, known_names)}",
        )
    if (encoding := settings.documents.encoding) is not None and not is_encoding(encoding):
        known_names = set(encodings.aliases.aliases.values())
        near = (
            did_you_mean(encoding.lower().replace("-", "_"), sorted(filter(is_encoding, known_names)))
            or "; give one such as cp1252, or leave it out"
        )
        yield Problem(("documents", "encoding"), f"{encoding} is no encoding of text{near}")


def _check_monitoring(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    path, key = settings.monitoring.path, ("monitoring", "path")
    if (log := settings.monitoring.log) is not None:
        if not task_of(settings.examples).detects_drift:
            yield Problem(
                ("monitoring", "log"),
                f"is for the task classification alone, not for {settings.examples.task}; remove it",
            )
        if (settings.documents.text or "text") in (log.prediction, log.score, log.model, log.time):
            yield Problem(
                ("monitoring", "log"), "names the field of the text; name those of what the model answered"
            )
        if log.prediction == settings.examples.label:
            # Each answer would be its own truth.
            yield Problem(
                ("monitoring", "log", "prediction"),
                f"{log.prediction} is examples.label, the true label; give another field, or rename the one"
                " of the log",
            )
    if path is None:
        if log is not None:
            yield Problem(
                ("monitoring", "log"), "needs monitoring.path, the folder of the rows that have these fields"
            )
        return
    if (problem := address_problem(path)) is not None:
        yield Problem(key, problem)
    elif overlap(path, settings.documents.path, root):
        yield Problem(
            key,
            f"{path} overlaps documents.path ({settings.documents.path}); production documents need a folder"
            " apart",
        )


def _check_snapshot(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for key, path in _documents_beside(settings):
        if (problem := address_problem(path)) is not None:
            yield Problem(key, problem)


def _documents_beside(settings: UseCaseSettings) -> Iterator[tuple[Key, str]]:
    """Yield the paths of documents that are no delivery, with their keys."""
    for number, path in enumerate(settings.snapshot.screen):
        yield ("snapshot", "screen", number), path
    for name in ("replay", "general"):
        if (section := getattr(settings.snapshot, name)) is not None:
            yield ("snapshot", name, "path"), section.path


def _check_data(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    """Yield what is wrong with the data that the settings name: folders and files that are missing, empty or
    not readable.
    """
    documents, production = settings.documents.path, settings.monitoring.path
    problem = place_problem(documents, root)
    if problem is None and not is_bucket(documents):
        problem = contents_problem(documents, root, settings.documents.format)
    if problem is not None:
        yield Problem(("documents", "path"), problem)
    if production is not None and "://" not in production:
        folder = locate(production, root).resolve()
        # The folder itself may still be missing: production has not delivered yet.
        if folder.is_file():
            yield Problem(("monitoring", "path"), str(place_problem(production, root)))
        elif not folder.parent.is_dir():
            near = suggest_path(str(Path(production).parent), root) or ", in which this folder could be made"
            yield Problem(("monitoring", "path"), f"folder not found: {Path(production).parent}{near}")
    for key, path in _documents_beside(settings):
        if (problem := external_problem(path, root)) is not None:
            yield Problem(key, problem)
    for name, answer in settings.evaluation.external.items():
        if (
            isinstance(answer, str)
            and task_of(settings.examples).target is not None
            and not (root / answer).is_file()
        ):
            key = ("evaluation", "external", name)
            yield Problem(key, f"there is no file {root / answer}; write it, or remove the entry")


def _check_examples(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    examples, task = settings.examples, task_of(settings.examples)
    if examples.label is None and task.has_labels:
        yield Problem(("examples", "label"), f"missing; {type(examples).model_fields['label'].description}")
    if settings.snapshot.replay is not None and not task.is_generative:
        yield Problem(
            ("snapshot", "replay"),
            f"is for the tasks {_generative_tasks()}: {examples.task} has no loss on general text",
        )
    if settings.chunks.stride and task.ends_texts:
        yield Problem(
            ("chunks", "stride"),
            f"is for tasks that pool the windows of a text: {examples.task} would train its tokens twice",
        )
    if examples.label_separator is not None and task.target != "labels":
        yield Problem(
            ("examples", "label_separator"),
            f"is for several labels a row, and {examples.task} has one; set examples.task: multi_label",
        )
    if examples.group is not None and examples.group == examples.label:
        yield Problem(
            ("examples", "group"),
            f"{examples.group} is the label's field too; a split by label cannot be learned from",
        )
    yield from _listed_twice(("examples", "labels"), examples.labels or [])
    for number, label in enumerate(examples.labels or []):
        if label.strip().casefold() in {
            word.strip().casefold() for word in settings.documents.missing_values
        }:
            yield Problem(
                ("examples", "labels", number),
                f"`{label}` means that a row has no label; remove it",
            )
    yield from (Problem(key, message) for key, message in problems(examples))


def _check_pii_model(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    examples = settings.examples
    if examples.pii_model is None:
        return
    from fullft_assets.personal_data.entities import find_pipeline

    try:
        find_pipeline(examples.pii_model, examples.pii_kinds, root)
    except SettingsError as error:
        yield Problem(("examples", "pii_model"), str(error))


def _check_task(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    metric, task = settings.primary_metric, task_of(settings.examples)
    if settings.training.balance_labels and task.no_label_weights is not None:
        yield Problem(
            ("training", "balance_labels"),
            f"is not for the task {task.name}: {task.no_label_weights}; remove it",
        )
    yield from _check_distillation(settings)
    if settings.training.ewc and settings.snapshot.general is None and settings.snapshot.replay is None:
        what = "snapshot.replay or snapshot.general" if task.is_generative else "snapshot.general"
        yield Problem(
            ("training", "ewc"),
            f"needs general text to tell which weights matter to it; give {what} a path, or remove it",
        )
    yield from _listed_twice(("training", "wise_ft"), settings.training.wise_ft)
    if settings.training.max_general_rise is not None and settings.snapshot.general is None:
        yield Problem(
            ("training", "max_general_rise"),
            "is measured on snapshot.general, which is not set; give it a path, or remove this",
        )
    if metric not in task.metrics:
        yield Problem(
            ("evaluation", "primary_metric"),
            f"{metric} does not decide for the task {task.name}; give {' or '.join(task.metrics)}",
        )
    yield from _check_registered(settings, task, root)
    for name, options in settings.release.gates.items():
        gate = GATES.get(name)
        if gate.tasks and not task.takes(name, gate.tasks):
            yield Problem(("release", "gates", name), f"is not measured for the task {task.name}; remove it")
        try:
            gate.options.model_validate(options)
        except ValidationError as error:
            # A mistyped option is missing, too; that it is unknown comes last and says more.
            last = error.errors()[-1]
            yield Problem(("release", "gates", name, *last["loc"]), last["msg"])


def _check_external(settings: UseCaseSettings, task: Task, root: Path) -> Iterator[Problem]:
    for name, answer in settings.evaluation.external.items():
        key = ("evaluation", "external", name)
        if name in BASELINES or name in MODELS:
            yield Problem(key, f"{name} is a system of the report already; give another name")
        if isinstance(answer, str) and task.target is None:
            yield Problem(
                key,
                f"the task {task.name} is scored by token losses, which a file of answers does not have; give"
                " the score instead",
            )


def _check_lm_eval(settings: UseCaseSettings, task: Task, root: Path) -> Iterator[Problem]:
    lm_eval = settings.evaluation.lm_eval
    if lm_eval is None:
        return
    if not task.is_generative:
        yield Problem(
            ("evaluation", "lm_eval"),
            f"is for language models, and the task {task.name} makes none; remove it",
        )
    if settings.launcher_of("evaluation").kind == "local" and importlib.util.find_spec("lm_eval") is None:
        yield Problem(
            ("evaluation", "lm_eval"), "lm-eval is not installed; pip install 'fullft-assets[lm-eval]'"
        )
    if not (root / lm_eval.folder).is_dir():
        yield Problem(
            ("evaluation", "lm_eval", "folder"),
            f"there is no folder {root / lm_eval.folder}; name the one with the tasks' YAML files",
        )


def _check_recognition(settings: UseCaseSettings) -> Iterator[Problem]:
    if settings.documents.pdf.recognises and not office.recognizer_is_installed():
        yield Problem(
            ("documents", "pdf", "pages_without_text"), "needs RapidOCR; pip install 'fullft-assets[ocr]'"
        )


def _check_registered(settings: UseCaseSettings, task: Task, root: Path) -> Iterator[Problem]:
    """Yield what is wrong with the registered metrics and baselines that the YAML names."""
    for section, key, registry, names in (
        ("evaluation", "metrics", METRICS, settings.evaluation.metrics),
        ("planning", "baselines", BASELINES, settings.planning.baselines or []),
    ):
        yield from _listed_twice((section, key), names)
        for number, name in enumerate(names):
            if not task.takes(name, registry.get(name).tasks):
                yield Problem(
                    (section, key, number),
                    f"{name} is not for the task {task.name}; it is for"
                    f" {', '.join(registry.get(name).tasks)}",
                )
    yield from _check_external(settings, task, root)
    yield from _check_lm_eval(settings, task, root)
    yield from _check_recognition(settings)
    if "bedrock" in settings.baselines and settings.planning.bedrock is None:
        yield Problem(
            ("planning", "baselines"),
            "names bedrock, and planning.bedrock does not say which model; give it one, or remove bedrock",
        )
    if settings.training.sharding != "none":
        for number, name in enumerate(settings.planning.baselines or []):
            if BASELINES.get(name).needs_whole_model:
                yield Problem(
                    ("planning", "baselines", number),
                    f"{name} works on the whole model in one process, which sharding:"
                    f" {settings.training.sharding} distributes; remove one of the two",
                )
    if task.required_baseline is not None and task.required_baseline not in settings.baselines:
        yield Problem(
            ("planning", "baselines"),
            f"needs {task.required_baseline}, which the report compares the model with; add it",
        )


def _check_optimizer(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for key, message in contradictions(settings.training, settings.launcher.processes):
        yield Problem(key, message)


def _check_guards(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for name, message in guard_problems(settings.training.guards):
        yield Problem(("training", "guards", name), message)


def _generative_tasks() -> str:
    return " and ".join(name for name, task in TASKS.all().items() if task.is_generative)


def _check_alerts(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    for name, message in channel_problems(settings.alerts):
        yield Problem(("alerts", "channels", name), message)


def _check_aws(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    """Yield what needs a client of AWS that is not installed, beside buckets, launchers and channels, which
    say so themselves.
    """
    used: dict[Key, object] = {
        ("documents", "queue"): settings.documents.queue,
        ("planning", "bedrock"): settings.planning.bedrock,
        ("release", "model_package"): settings.release.model_package,
    }
    for key, value in used.items():
        if value is not None and (problem := problem_without("boto3")):
            yield Problem(key, problem)


def _check_distillation(settings: UseCaseSettings) -> Iterator[Problem]:
    distillation, has_replay = settings.training.distillation, settings.snapshot.replay is not None
    if distillation is None:
        return
    key: Key = ("training", "distillation")
    is_generative = task_of(settings.examples).is_generative
    if distillation.weight == 1 and not (is_generative and has_replay):
        yield Problem(
            (*key, "weight"),
            "1 leaves nothing to learn of the task itself; give less, or replay general documents"
            " (snapshot.replay), which the base model then teaches alone",
        )


def _check_launcher(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    sections: dict[Key, LauncherSettings | None] = {("launcher",): settings.launcher}
    sections |= {("compute", name): settings.compute.of(name) for name in type(settings.compute).model_fields}
    for section, launcher in sections.items():
        if launcher is None:
            continue
        if launcher.kind not in LAUNCHERS:
            near = did_you_mean(launcher.kind, LAUNCHERS)
            yield Problem((*section, "kind"), f"{launcher.kind} is not one of {', '.join(LAUNCHERS)}{near}")
        for name, message in launcher_problems(launcher):
            yield Problem((*section, name), message)


def _check_isolation(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    """Yield what workloads in containers without a network would need one for."""

    def are_isolated(*workloads: str) -> list[str]:
        return [name for name in workloads if getattr(settings.launcher_of(name), "network_isolation", False)]

    isolated = are_isolated("planning", "evaluation")
    for name in settings.baselines if isolated else ():
        if name in BASELINES and BASELINES.get(name).needs_network:
            where = " and ".join(f"compute.{workload}" for workload in isolated)
            yield Problem(
                ("planning", "baselines"),
                f"names {name}, which asks a service, and a container with network_isolation: true reaches"
                f" none; remove {name}, or set network_isolation to false in {where}",
            )
    if are_isolated("training") and "mlflow" in settings.training.track:
        yield Problem(
            ("training", "track"),
            "names mlflow, whose server a container with launcher.network_isolation does not reach;"
            " remove it",
        )


def _check_crons(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    crons = {
        ("retraining", name): getattr(settings.retraining, name)
        for name in ("schedule", "evaluation_schedule")
    }
    for place, cron in {**crons, ("retention", "schedule"): settings.retention.schedule}.items():
        if cron is not None and (problem := cron_problem(cron)) is not None:
            yield Problem(
                place,
                f"{cron} is not a cron ({problem}); such as `0 3 * * 0`: minute hour day month weekday",
            )


def _all_problems(settings: UseCaseSettings, yaml_path: Path, root: Path) -> list[Problem]:
    problems = [_with_demo_fix(problem, yaml_path) for problem in validate(settings, root)]
    folder = yaml_path.parent.name
    problems += _dependency_problems(settings.documents.deps, settings.name or folder)
    if settings.name is None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", folder):
        fix = f"add `name: {fitting_name(folder)}`"
        problems.append(Problem(("name",), f"the folder's name `{folder}` cannot name a use case; {fix}"))
    return problems


def _listed_twice(key: Key, values: Sequence[object]) -> Iterator[Problem]:
    """Yield each value of a list that is in it before."""
    for number, value in enumerate(values):
        if value in values[:number]:
            yield Problem((*key, number), f"{value} is listed twice; remove one")


def _dependency_problems(deps: list[str], name: str) -> Iterator[Problem]:
    yield from _listed_twice(("documents", "deps"), deps)
    for number, key in enumerate(deps):
        if not all(key.split("/")):
            yield Problem(
                ("documents", "deps", number), f"`{key}` is no key of an asset, such as `team/exports`"
            )
        if key.split("/")[0] == name:
            yield Problem(
                ("documents", "deps", number),
                f"{key} is an asset of this use case itself; name what writes the folder",
            )


def _data_problems(settings: UseCaseSettings, yaml_path: Path, root: Path) -> list[Problem]:
    return [_with_demo_fix(problem, yaml_path) for problem in _check_data(settings, root)]


def _with_demo_fix(problem: Problem, yaml_path: Path) -> Problem:
    # A demo's documents, and its model, are no part of the package: on a fresh checkout they have yet to be
    # written.
    if (
        yaml_path.parent.parent != DEFS
        or yaml_path.parent.name not in DEMOS
        or problem.key
        not in (
            ("base_model",),
            ("documents", "path"),
            ("monitoring", "path"),
            ("snapshot", "replay", "path"),
            ("snapshot", "general", "path"),
        )
    ):
        return problem
    return Problem(
        problem.key, f"{problem.message}; `fullft prepare {yaml_path.parent.name}` writes the demo's"
    )


def _use_case(
    settings: UseCaseSettings, yaml_path: Path, root: Path | None = None, document: int = 0
) -> UseCase:
    return UseCase(
        settings.name or yaml_path.parent.name,
        settings,
        yaml_path,
        root or find_project_root(yaml_path),
        document,
    )
