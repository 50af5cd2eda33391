"""What `fullft check` says of a use case within seconds, before a model is loaded: whether the YAML fits the
data, and which defaults were chosen.
"""

from collections.abc import Iterator

from pydantic import BaseModel

from fullft_assets.base_model import BaseModelHeader, find_base_model, read_header
from fullft_assets.checking.corpus import COUNTED_BYTES, Corpus, look_at_documents, look_at_production
from fullft_assets.checking.sample import field_problems, findings, labels_of, log_problems
from fullft_assets.checking.yaml_source import Key, read_source
from fullft_assets.documents import names
from fullft_assets.documents.delivery import kept_out, left_in_place, skipped
from fullft_assets.escaping import quoted
from fullft_assets.examples.labels import may_be_named
from fullft_assets.planning import state_bytes
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.task import TASKS, task_of


def check_use_case(use_case: UseCase) -> str:
    """Return the lines that a person wants to see before the first ingestion.

    Raises:
        SettingsError: there is no row, or the rows do not have a field that the settings name.
    """
    settings = use_case.settings
    model = read_header(find_base_model(settings, use_case.project_root))
    corpus = look_at_documents(use_case)
    _refuse(use_case, corpus)
    refused = [("refused", line) for line in _refusals(settings, corpus)]
    rows = {
        "model": _model_line(settings, model),
        "documents": _documents_line(settings, corpus),
        "split": _split_line(settings, corpus),
        "windows": (
            f"tokens {_chosen(settings, 'chunks', 'max_tokens')},"
            f" stride {_chosen(settings, 'chunks', 'stride')}"
        ),
        "precision": _chosen(settings, "training", "precision"),
        "batch": (
            f"rows a step {_chosen(settings, 'training', 'batch_size')}, "
            f"a forward pass {_chosen(settings, 'training', 'micro_batch_size')}, "
            f"gradient checkpointing {_chosen(settings, 'training', 'gradient_checkpointing')}"
        ),
        "learning": (
            f"rate {_chosen(settings, 'training', 'learning_rate')}, "
            f"{_chosen(settings, 'training', 'scheduler')}, epochs {_epochs(settings, corpus)}"
        ),
        "decides": (f"metric {_metric(settings)}, seed {_chosen(settings, 'seed')}"),
        "memory": _memory_line(settings, model),
        "verdict": (
            f"unknown before ingestion; needs {settings.release.min_effective_groups:g} test groups"
            " (release.min_effective_groups)"
        ),
    }
    if settings.monitoring.path is not None and not task_of(settings.examples).detects_drift:
        watched = ", ".join(name for name, task in TASKS.all().items() if task.detects_drift)
        rows["monitoring"] = f"predictions only: drift is watched for the task {watched} alone"
    if splits := names.splits_of(file.path for file in corpus.files):
        files_of_rows = (row.place.rpartition(":")[0] for row in corpus.sample)
        rows["own splits"] = names.mixed_splits(splits, files_of_rows, settings.examples.group, "rows read")
    if corpus.kept_out:
        (rows["kept out"],) = kept_out(corpus.kept_out, named=True)
    if corpus.others:
        (rows["not read"],) = left_in_place(corpus.others, named=True)
    if corpus.skipped:
        (rows["skipped"],) = skipped(corpus.skipped, named=True)
    if corpus.note:
        rows["note"] = corpus.note
    rows["next"] = (
        f"`fullft ingest {use_case.name}` counts exactly what is quarantined and how rows are split"
    )
    lines = [*refused, *rows.items(), *findings(corpus.sample, settings)]
    return "\n".join(
        [
            f"{use_case.name}: {'a run would be refused' if refused else 'ok'}",
            *(f"  {name:<10} {text}" for name, text in lines),
        ]
    )


def _refuse(use_case: UseCase, corpus: Corpus) -> None:
    source, log = None, use_case.settings.monitoring.log
    logged = () if log is None else log_problems(look_at_production(use_case), log)
    for key, message in (*_no_row(corpus), *field_problems(corpus.sample, use_case.settings), *logged):
        source = source or read_source(use_case.yaml_path, use_case.document)
        source.add(key, message)
    if source is not None:
        source.raise_problems()


def _no_row(corpus: Corpus) -> Iterator[tuple[Key, str]]:
    if corpus.files and corpus.num_rows == 0 and not corpus.is_exact:
        what = (
            "split rows that are longer, and of .json files that are one object name the records in"
            " documents.records"
        )
        yield (
            ("documents", "path"),
            f"no whole row in the {COUNTED_BYTES // 2**20} MiB that are looked at; {what}",
        )
    elif corpus.files and corpus.num_rows == 0:
        yield (
            ("documents", "path"),
            f"no row in {len(corpus.files):,} file(s){f': {corpus.note}' if corpus.note else ''}",
        )


def _split(settings: UseCaseSettings, num_rows: int) -> tuple[int, int, int]:
    snapshot = settings.snapshot
    test = round(num_rows * snapshot.test_share)
    validation = round(num_rows * snapshot.validation_share)
    train = num_rows - test - validation
    return (
        min(train, snapshot.max_train_rows or train),
        min(validation, snapshot.max_validation_rows or validation),
        test,
    )


def _model_line(settings: UseCaseSettings, model: BaseModelHeader) -> str:
    reads = f", reads up to {model.max_positions:,} tokens" if model.max_positions else ""
    return (
        f"{settings.base_model}: {model.model_type}, {_count(model.num_parameters)} parameters in"
        f" {model.dtype} ({_size(model.weights_bytes)}){reads}, revision {model.revision[:12]}"
    )


def _memory_line(settings: UseCaseSettings, model: BaseModelHeader) -> str:
    width = state_bytes(settings.training.optimizer, settings.training.weights)
    return (
        f"{_size(width * model.num_parameters)} for weights, gradients, moments ({width} bytes a parameter),"
        " and activations, which `fullft plan` counts"
    )


def _documents_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    if corpus.num_rows is None:
        return f"{settings.documents.path}: unknown number of rows; a bucket is read by the first run"
    about = "" if corpus.is_exact else "about "
    num_bytes = sum(file.bytes for file in corpus.files)
    files = f"{len(corpus.files):,} file{'s' if len(corpus.files) != 1 else ''}, {_size(num_bytes)}"
    sample_note = (
        ""
        if corpus.num_files_drawn is None
        else f"; {corpus.num_files_drawn:,} files, drawn from all, were looked at"
    )
    return f"{settings.documents.path}: {files}, {about}{corpus.num_rows:,} rows{sample_note}"


def _split_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    if corpus.num_rows is None:
        shares = settings.snapshot
        return (
            f"unknown; {shares.test_share:.0%} of the groups for the test set, {shares.validation_share:.0%}"
            " for validation"
        )
    train, validation, test = _split(settings, corpus.num_rows)
    return (
        f"about {train:,} train, {validation:,} validation, {test:,} test rows, before quarantine and"
        " near-duplicates"
    )


def _refusals(settings: UseCaseSettings, corpus: Corpus) -> Iterator[str]:
    """Yield why a run would stop at these rows, whatever the rules quarantine."""
    if corpus.num_rows is None:
        return
    train, least = _split(settings, corpus.num_rows)[0], settings.snapshot.min_train_rows
    if train < least:
        yield (
            f"about {train:,} training rows, fewer than snapshot.min_train_rows ({least:,}): deliver more"
            " rows, or lower it"
        )
    task = task_of(settings.examples)
    labels = {label for row in corpus.sample for label in labels_of(row, settings.examples)}
    is_whole = corpus.is_exact and len(corpus.sample) == corpus.num_rows
    if is_whole and task.has_labels and len(labels) == 1 and task.min_labels > 1:
        only = f" ({quoted(min(labels))})" if may_be_named(labels) else ""
        yield (
            f"examples.label: all {corpus.num_rows:,} rows have one label{only}, and a classifier needs"
            f" {task.min_labels}: name another field, or deliver other rows"
        )


def _epochs(settings: UseCaseSettings, corpus: Corpus) -> str:
    if settings.training.epochs is not None:
        return _chosen(settings, "training", "epochs")
    if corpus.num_rows is None:
        return f"{settings.training.num_epochs:g} or more, by the number of rows (default)"
    num_rows = _split(settings, corpus.num_rows)[0]
    epochs = settings.with_epochs(num_rows).training.num_epochs
    return f"{epochs:g} (default for {num_rows:,} rows)"


def _chosen(settings: UseCaseSettings, *key: str) -> str:
    section: BaseModel = settings
    for name in key[:-1]:
        section = getattr(section, name)
    value = getattr(section, key[-1])
    if isinstance(value, bool):
        shown = "on" if value else "off"
    else:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown if key[-1] in section.model_fields_set else f"{shown} (default)"


def _metric(settings: UseCaseSettings) -> str:
    return settings.primary_metric + (" (default)" if settings.evaluation.primary_metric is None else "")


def _count(number: float) -> str:
    return _scaled(number, 1000, ("", "k", "M", "B", "T"))


def _size(number: float) -> str:
    return _scaled(number, 1024, (" bytes", " KiB", " MiB", " GiB", " TiB"))


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    power = next((power for power in range(4, 0, -1) if number >= base**power), 0)
    return f"{number / base**power:.{1 if power else 0}f}{units[power]}"
