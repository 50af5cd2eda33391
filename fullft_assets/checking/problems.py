"""What is wrong with the settings of a use case beyond types and bounds, and with the data that they name:
a key below `attributes`, and one line with the fix.
"""

import encodings.aliases
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from croniter import croniter
from pydantic import ValidationError

from fullft_assets.alerts import channel_problems
from fullft_assets.base_model import own_code, read_header, resolve_base_model, suggest_path
from fullft_assets.checking.yaml_source import Key
from fullft_assets.documents.formats import FORMATS, is_readable, known_endings, reads_any_ending
from fullft_assets.documents.formats.encodings import is_encoding
from fullft_assets.documents.names import shown_path
from fullft_assets.documents.sources import Folder
from fullft_assets.errors import DataError, SettingsError, did_you_mean
from fullft_assets.examples.expectations import (
    argument_problems as expectation_argument_problems,
    problems as expectation_problems,
)
from fullft_assets.extras import problem_without
from fullft_assets.ray_clusters import read_manifest
from fullft_assets.settings import MODELS, LauncherSettings, UseCaseSettings, contradictions
from fullft_assets.settings.guards import guard_problems
from fullft_assets.settings.launcher_kinds import LAUNCHERS, launcher_problems
from fullft_assets.settings.production import DRIFT_TESTS
from fullft_assets.settings.use_case import locate
from fullft_assets.task import BASELINES, GATES, METRICS, TASKS, task_of

Problem = tuple[Key, str]

#: Ends of archives, which are not unpacked.
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def is_cron(cron: str) -> bool:
    """Return whether a text is a cron with five fields, or one such as `@daily`, that is due on some day."""
    return (cron.startswith("@") or len(cron.split()) == 5) and croniter.is_valid(cron, strict=True)


def is_bucket(path: str) -> bool:
    """Return whether a path is a well-formed s3://bucket/prefix; its content is not listed: definitions load
    often, without a network.
    """
    return re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*/?", path) is not None


def _address_problem(path: str) -> str | None:
    if is_bucket(path):
        return problem_without("boto3")
    if "://" in path and "@" in path:
        return (
            f"{path.partition('://')[0]}://***@{path.rpartition('@')[2]}: a path has no"
            " credentials; give them in the environment, by a profile or by a role"
        )
    if path.startswith("s3:"):
        return (
            f"{path} is not s3://bucket/prefix; a bucket's name has 3 to 63 lower-case letters, digits, dots"
            " and dashes"
        )
    if "://" in path:
        return (
            f"{path} is neither a folder on this machine nor s3://bucket/prefix; copy or mount the documents"
            " and name that folder"
        )
    return None


def _folder_problem(path: str, root: Path) -> str | None:
    if "://" in path or path.startswith("s3:"):
        return _address_problem(path)
    folder = locate(path, root)
    if not folder.exists():
        hint = suggest_path(path, root) or f"; relative paths start at {root}"
        return f"folder not found: {path}{hint}"
    return (
        f"{path} is a file; name the folder that contains it: {Path(path).parent}"
        if not folder.is_dir()
        else None
    )


def _contents_problem(path: str, root: Path, format_: str | None = None) -> str | None:
    """Return what is wrong with the content of a folder that documents come from, or None.

    Args:
        path: the folder.
        root: where relative paths start.
        format_: `documents.format`. Default: it is not the folder of `documents.path`.
    """
    folder = locate(path, root)
    try:
        # Stops at the first one: a folder may contain 100,000 files, and definitions load often.
        source = Folder(folder, any_ending=format_ is not None and reads_any_ending(format_))
        if any(os.access(folder / file.path, os.R_OK) for file in source.walk()):
            return None
    except DataError as error:
        return str(error)
    if source.skipped:
        name, why = min(source.skipped.items())
        return f"no document below {path} can be read; {shown_path(name)}: {why}"
    is_packed = any(name.lower().endswith(_ARCHIVES) for name in source.others)
    hint = "; if each file is one text, set documents.format to text" if source.others and format_ else ""
    hint = "; unpack the archives" if is_packed else hint
    return f"no readable document below {path}; known endings: {known_endings()}{hint}"


def _external_problem(path: str, root: Path) -> str | None:
    """Return what is wrong with a file or folder of documents that are no delivery, or None; a bucket is
    asked when it is read.
    """
    target = locate(path, root)
    if target.is_file():
        return (
            None
            if is_readable(target.name)
            else f"{path} has an ending that is not read; known endings: {known_endings()}"
        )
    if "://" not in path and not path.startswith("s3:") and not target.exists():
        return f"{path} not found{suggest_path(path, root) or f'; relative paths start at {root}'}"
    return _folder_problem(path, root) or (None if is_bucket(path) else _contents_problem(path, root))


def overlap(path: str, other_path: str, root: Path) -> bool:
    """Return whether one of two folders or buckets contains the other."""
    first, second = (
        PurePosixPath(name) if is_bucket(name) else locate(name, root).resolve()
        for name in (path, other_path)
    )
    return first.is_relative_to(second) or second.is_relative_to(first)


def validate(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    """Yield the problems of settings beyond types and bounds, whatever data there is: formats, model, crons,
    labels.
    """
    yield from _section_problems(settings)
    yield from _model_problems(settings, root)
    yield from _document_problems(settings, root)
    yield from _example_problems(settings, root)
    yield from _training_problems(settings)
    yield from _evaluation_problems(settings)
    yield from _launcher_problems(settings, root)
    yield from _schedule_problems(settings)


def data_problems(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    """Yield the problems of the data that the settings name (folders and files that are missing, empty or not
    readable), and of the arguments of expectations; this takes longer than to load definitions.
    """
    yield from expectation_argument_problems(settings.examples)
    documents = settings.documents
    problem = _folder_problem(documents.path, root)
    if problem is None and not is_bucket(documents.path):
        problem = _contents_problem(documents.path, root, documents.format)
    if problem is not None:
        yield ("documents", "path"), problem
    production = settings.monitoring.path
    if production is not None and "://" not in production:
        folder = locate(production, root).resolve()
        # The folder itself may still be missing: production has not delivered yet.
        if folder.is_file():
            yield ("monitoring", "path"), str(_folder_problem(production, root))
        elif not folder.parent.is_dir():
            near = suggest_path(str(Path(production).parent), root) or ", in which this folder could be made"
            yield ("monitoring", "path"), f"folder not found: {Path(production).parent}{near}"
    for key, path in _documents_beside(settings):
        if (problem := _external_problem(path, root)) is not None:
            yield key, problem
    if task_of(settings.examples).target is None:
        return
    for name, answer in settings.evaluation.external.items():
        if not (root / answer).is_file():
            yield (
                ("evaluation", "external", name),
                f"there is no file {root / answer}; write it, or remove the entry",
            )


def dependency_problems(deps: list[str], name: str) -> Iterator[Problem]:
    """Yield the problems of `documents.deps` of the use case of this name."""
    for number, key in enumerate(deps):
        entry = ("documents", "deps", number)
        yield from _of_rules(
            (not all(key.split("/")), entry, f"`{key}` is no key of an asset, such as `team/exports`"),
            (
                key.split("/")[0] == name,
                entry,
                f"{key} is an asset of this use case itself; name what writes the folder",
            ),
        )


def _of_rules(*rules: tuple[bool, Key, str]) -> Iterator[Problem]:
    return ((key, message) for is_broken, key, message in rules if is_broken)


def _refusal(check: Callable[[], object]) -> str | None:
    try:
        check()
    except SettingsError as error:
        return str(error)
    return None


def _section_problems(settings: UseCaseSettings) -> Iterator[Problem]:
    chunks = settings.chunks
    training = settings.training
    monitoring = settings.monitoring
    ingestion = settings.compute.ingestion or LauncherSettings()
    launchers = {
        **{name: settings.launcher_of(name) for name in ("planning", "training", "evaluation")},
        "ingestion": ingestion,
    }
    isolated_workloads = {
        name for name, section in launchers.items() if getattr(section, "network_isolation", False)
    }
    # Of those whose workloads ask for baselines.
    judging_workloads = sorted(isolated_workloads & {"planning", "evaluation"})
    services = [
        name for name in settings.baselines if name in BASELINES and BASELINES.get(name).needs_network
    ]
    window_rows = None if monitoring.window is None else monitoring.window.rows
    return _of_rules(
        (
            "ingestion" in isolated_workloads,
            ("compute", "ingestion"),
            "cannot have network_isolation: true, since its jobs read documents; set it to false there",
        ),
        (
            bool(services and judging_workloads),
            ("planning", "baselines"),
            f"names {', '.join(services)}, which asks a service, and a container with network_isolation: true"
            " reaches none; remove it, or set network_isolation to false in"
            f" {' and '.join(f'compute.{name}' for name in judging_workloads)}",
        ),
        (
            "training" in isolated_workloads and "mlflow" in training.track,
            ("training", "track"),
            "names mlflow, whose server a container with launcher.network_isolation does not reach;"
            " remove it",
        ),
        (
            "ingestion" not in isolated_workloads
            and ingestion.kind in ("sagemaker", "ecs")
            and not settings.documents.path.startswith("s3://"),
            ("compute", "ingestion"),
            f"needs documents on s3://, which the containers of {ingestion.kind} read themselves",
        ),
        (
            settings.snapshot.least_test_share + settings.snapshot.validation_share >= 0.9,
            ("snapshot", "test_share"),
            f"with snapshot.validation_share ({settings.snapshot.validation_share:g}) it leaves less than 10%"
            " to train on",
        ),
        (
            chunks.stride >= chunks.max_tokens // 2,
            ("chunks", "stride"),
            f"{chunks.stride} must be less than half of chunks.max_tokens ({chunks.max_tokens})",
        ),
        (
            training.rows_a_pass() > training.batch_size,
            ("training", "micro_batch_size"),
            f"{training.micro_batch_size} is larger than training.batch_size ({training.batch_size}); raise"
            " that, or lower it",
        ),
        (
            window_rows is not None and window_rows < monitoring.min_window_rows,
            ("monitoring", "min_window_rows"),
            f"{monitoring.min_window_rows} is larger than a window of {window_rows} rows, so that none would"
            " be compared",
        ),
    )


def _model_problems(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    try:
        header = read_header(resolve_base_model(settings.base_model, root))
    except SettingsError as error:
        yield ("base_model",), str(error)
        return
    if settings.trust_remote_code and (problem := _refusal(lambda: own_code(header.folder))):
        yield ("trust_remote_code",), problem
    max_tokens = settings.chunks.max_tokens
    yield from _of_rules(
        (
            header.max_positions is not None and max_tokens > header.max_positions,
            ("chunks", "max_tokens"),
            f"{max_tokens} is more than the {header.max_positions} tokens that the base model reads; give at"
            " most that",
        ),
        *(
            (
                not header.may_predict_tokens and BASELINES.get(name).needs_causal_model,
                ("planning", "baselines", number),
                f"{name} prompts a language model, and base_model is a {header.architectures[0]}; remove"
                " it, or use a causal model",
            )
            for number, name in enumerate(settings.planning.baselines or [])
        ),
    )


def _documents_beside(settings: UseCaseSettings) -> Iterator[tuple[Key, str]]:
    yield from (
        (("snapshot", "screen", number), path) for number, path in enumerate(settings.snapshot.screen)
    )
    for name in ("replay", "general"):
        if (section := getattr(settings.snapshot, name)) is not None:
            yield ("snapshot", name, "path"), section.path


def _document_problems(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    documents = settings.documents
    production = settings.monitoring.path
    paths: dict[Key, str] = {("documents", "path"): documents.path, **dict(_documents_beside(settings))}
    if production is not None:
        paths["monitoring", "path"] = production
    problems = {key: _address_problem(path) for key, path in paths.items()}
    yield from ((key, problem) for key, problem in problems.items() if problem is not None)
    if documents.format != "auto" and documents.format not in FORMATS:
        names = ["auto", *FORMATS]
        hint = did_you_mean(documents.format, names)
        yield ("documents", "format"), f"{documents.format} is not one of {', '.join(names)}{hint}"
    yield from _of_rules(
        (
            production is not None
            and problems["monitoring", "path"] is None
            and overlap(production, documents.path, root),
            ("monitoring", "path"),
            f"{production} overlaps documents.path ({documents.path}); production documents need a folder"
            " apart",
        ),
    )
    encoding = documents.encoding
    if encoding is not None and not is_encoding(encoding):
        names = sorted(filter(is_encoding, set(encodings.aliases.aliases.values())))
        hint = did_you_mean(encoding.lower().replace("-", "_"), names)
        hint = hint or "; give one such as cp1252, or leave it out"
        yield ("documents", "encoding"), f"{encoding} is no encoding of text{hint}"


def _example_problems(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    examples = settings.examples
    task = task_of(examples)
    generative = " and ".join(name for name, task_type in TASKS.all().items() if task_type.is_generative)
    missing_words = {word.strip().casefold() for word in settings.documents.missing_values}
    yield from _of_rules(
        (
            settings.snapshot.replay is not None and not task.is_generative,
            ("snapshot", "replay"),
            f"is for the tasks {generative}: {examples.task} has no loss on general text",
        ),
        (
            examples.label is None and task.has_labels,
            ("examples", "label"),
            f"missing; {type(examples).model_fields['label'].description}",
        ),
        (
            bool(settings.chunks.stride and task.ends_texts),
            ("chunks", "stride"),
            f"is for tasks that pool the chunks of a text: {examples.task} would train its tokens twice",
        ),
        (
            examples.label_separator is not None and task.target != "labels",
            ("examples", "label_separator"),
            f"is for several labels a row, and {examples.task} has one; set examples.task: multi_label",
        ),
        (
            not task.has_one_label
            and all(DRIFT_TESTS.get(name).needs_label for name in settings.monitoring.drift_tests),
            ("monitoring", "drift_tests"),
            f"names no test of texts, and {examples.task} predicts no single label of a text; add embeddings",
        ),
        (
            examples.group is not None and examples.group == examples.label,
            ("examples", "group"),
            f"{examples.group} is the label's field too; a split by label cannot be learned from",
        ),
        *(
            (
                label.strip().casefold() in missing_words,
                ("examples", "labels", number),
                f"`{label}` means that a row has no label; remove it",
            )
            for number, label in enumerate(examples.labels or [])
        ),
    )
    yield from expectation_problems(examples)
    if (model := examples.pii_model) is not None:
        from fullft_assets.personal_data.entities import find_pipeline

        if problem := _refusal(lambda: find_pipeline(model, examples.pii_kinds, root)):
            yield ("examples", "pii_model"), problem


def _training_problems(settings: UseCaseSettings) -> Iterator[Problem]:
    training = settings.training
    snapshot = settings.snapshot
    task = task_of(settings.examples)
    general = "snapshot.replay or snapshot.general" if task.is_generative else "snapshot.general"
    yield from _of_rules(
        (
            training.balance_labels and task.no_label_weights is not None,
            ("training", "balance_labels"),
            f"is not for the task {task.name}: {task.no_label_weights}; remove it",
        ),
        (
            training.distillation is not None
            and training.distillation.weight == 1
            and not (task.is_generative and snapshot.replay is not None),
            ("training", "distillation", "weight"),
            "1 leaves nothing to learn of the task itself; give less, or replay general documents"
            " (snapshot.replay), which the base model then teaches alone",
        ),
        (
            bool(training.ewc) and snapshot.general is None and snapshot.replay is None,
            ("training", "ewc"),
            f"needs general text to tell which weights matter to it; give {general} a path, or remove it",
        ),
        (
            training.max_general_rise is not None and snapshot.general is None,
            ("training", "max_general_rise"),
            "is measured on snapshot.general, which is not set; give it a path, or remove this",
        ),
    )
    yield from contradictions(training, settings.launcher.processes)
    yield from ((("training", "guards", name), message) for name, message in guard_problems(training.guards))


def _evaluation_problems(settings: UseCaseSettings) -> Iterator[Problem]:
    task = task_of(settings.examples)
    baselines = settings.planning.baselines or []
    yield from _of_rules(
        (
            settings.primary_metric not in task.metrics,
            ("evaluation", "primary_metric"),
            f"{settings.primary_metric} does not decide for the task {task.name}; give"
            f" {' or '.join(task.metrics)}",
        ),
        (
            "bedrock" in settings.baselines and settings.planning.bedrock is None,
            ("planning", "baselines"),
            "names bedrock, and planning.bedrock does not say which model; give it one, or remove bedrock",
        ),
        (
            task.required_baseline is not None and task.required_baseline not in settings.baselines,
            ("planning", "baselines"),
            f"needs {task.required_baseline}, which the report compares the model with; add it",
        ),
        *(
            (
                settings.training.sharding != "none" and BASELINES.get(name).needs_whole_model,
                ("planning", "baselines", number),
                f"{name} works on the whole model in one process, which sharding:"
                f" {settings.training.sharding} distributes; remove one of the two",
            )
            for number, name in enumerate(baselines)
        ),
    )
    for section, key, registry, names in (
        ("evaluation", "metrics", METRICS, settings.evaluation.metrics),
        ("planning", "baselines", BASELINES, baselines),
    ):
        for number, name in enumerate(names):
            if not task.takes(name, registry.get(name).tasks):
                yield (
                    (section, key, number),
                    f"{name} is not for the task {task.name}; it is for"
                    f" {', '.join(registry.get(name).tasks)}",
                )
    for name in settings.evaluation.external:
        entry = ("evaluation", "external", name)
        yield from _of_rules(
            (
                name in BASELINES or name in MODELS,
                entry,
                f"{name} is a system of the report already; give another name",
            ),
            (
                task.target is None,
                entry,
                f"the task {task.name} is scored by token losses, which a file of answers does not have;"
                " remove the entry",
            ),
        )
    for name, options in settings.release.gates.items():
        gate = GATES.get(name)
        if gate.tasks and not task.takes(name, gate.tasks):
            yield ("release", "gates", name), f"is not measured for the task {task.name}; remove it"
        try:
            gate.options.model_validate(options)
        except ValidationError as error:
            # A mistyped option is missing, too; that it is unknown comes last and says more.
            last = error.errors()[-1]
            yield ("release", "gates", name, *last["loc"]), last["msg"]


def _launcher_problems(settings: UseCaseSettings, root: Path) -> Iterator[Problem]:
    yield from (
        (("alerts", "channels", name), message) for name, message in channel_problems(settings.alerts)
    )
    # Buckets, launchers and channels say so themselves.
    for section, key in (("planning", "bedrock"), ("release", "model_package")):
        if getattr(getattr(settings, section), key) is not None and (problem := problem_without("boto3")):
            yield (section, key), problem
    if settings.compute.data.engine == "ray" and (problem := problem_without("ray")):
        yield ("compute", "data", "engine"), problem
    address = settings.compute.data.address
    if address is not None and not address.startswith("ray://"):
        manifest = partial(read_manifest, locate(address, root))
        if problem := problem_without("dagster_ray") or _refusal(manifest):
            yield ("compute", "data", "address"), problem
    sections: dict[Key, LauncherSettings] = {
        ("launcher",): settings.launcher,
        **{
            ("compute", name): section
            for name in settings.compute.WORKLOADS
            if (section := settings.compute.of(name)) is not None
        },
    }
    for section, launcher in sections.items():
        if launcher.kind not in LAUNCHERS:
            near = did_you_mean(launcher.kind, LAUNCHERS)
            yield (*section, "kind"), f"{launcher.kind} is not one of {', '.join(LAUNCHERS)}{near}"
        yield from (((*section, name), message) for name, message in launcher_problems(launcher))


def _schedule_problems(settings: UseCaseSettings) -> Iterator[Problem]:
    crons = {
        ("retraining", "schedule"): settings.retraining.schedule,
        ("retraining", "evaluation_schedule"): settings.retraining.evaluation_schedule,
        ("retention", "schedule"): settings.retention.schedule,
    }
    yield from (
        (key, f"{cron} is not a cron such as `0 3 * * 0`: minute hour day month weekday")
        for key, cron in crons.items()
        if cron is not None and not is_cron(cron)
    )
