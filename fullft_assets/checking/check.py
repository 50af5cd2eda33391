"""check: what `fullft check` says of a use case within seconds, before a model is loaded.

Says what would be trained on what, rough memory and time, and which defaults were chosen. Memory and time
here are arithmetic on assumptions that are printed with them; the feasibility plan measures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from fullft_assets.base_model import BaseModelHeader, find_base_model, read_header
from fullft_assets.checking.corpus import COUNTED_BYTES, Corpus, look_at_documents, look_at_production
from fullft_assets.checking.fields import field_problems, log_problems
from fullft_assets.checking.findings import findings
from fullft_assets.checking.losses import Losses, is_whole, losses_of, refusals
from fullft_assets.checking.yaml_source import Key, read_source
from fullft_assets.documents import own_splits
from fullft_assets.documents.delivery import kept_out, left_in_place, skipped
from fullft_assets.models.hardware import peak_flops
from fullft_assets.planning import state_bytes
from fullft_assets.planning.targets import targets
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.launchers.ecs import EcsLauncherSettings
from fullft_assets.settings.launchers.sagemaker import SageMakerLauncherSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.task import TASKS, task_of

#: Floating-point operations a second that training reaches on one CPU core (MiniLM in fp32 reached 70).
CPU_CORE_GFLOPS = 60
#: Share of a card's dense 16-bit peak that training reaches, and the peak assumed of a card that is not
#: known, in FLOP/s.
REACHED_SHARE, OTHER_PEAK = 0.4, 100e12


@dataclass(frozen=True)
class Device:
    """What training would run on, and the speed assumed for it."""

    name: str
    is_gpu: bool
    flops: float


def check_use_case(use_case: UseCase) -> str:
    """Return the lines that a person wants to see before training.

    Raises:
        SettingsError: the base model's tokenizer cannot be read; or there is no row, or the rows do not have
            a field that the settings name.
    """
    settings = use_case.settings
    model = read_header(find_base_model(settings, use_case.project_root))
    corpus = look_at_documents(use_case, model)
    _refuse(use_case, corpus)
    losses = losses_of(corpus, settings)
    refused = [
        ("refused", line)
        for line in (*refusals(corpus, losses, settings), *_too_few_rows(settings, corpus, losses))
    ]
    device = find_training_device(settings)
    rows = {
        "model": _model_line(settings, model),
        "documents": _documents_line(settings, corpus),
        "split": _split_line(settings, corpus),
        "verdict": (
            f"unknown before ingestion; needs {settings.release.min_effective_groups:g} test groups"
            " (release.min_effective_groups)"
        ),
        "windows": _windows_line(settings, corpus),
        "memory": _memory_line(settings, model, device),
        "time": _time_line(settings, model, corpus, device),
        "precision": _chosen(settings, "training", "precision") + _precision_meant(settings, device),
        "batch": (
            f"rows a step {_chosen(settings, 'training', 'batch_size')}, "
            f"a forward pass {_chosen(settings, 'training', 'micro_batch_size')}, "
            f"gradient checkpointing {_chosen(settings, 'training', 'gradient_checkpointing')}"
        ),
        "learning": (
            f"rate {_chosen(settings, 'training', 'learning_rate')}, "
            f"{_chosen(settings, 'training', 'scheduler')}, epochs {_epochs(settings, corpus)}"
        ),
        "decides": f"metric {_metric(settings)}, seed {_chosen(settings, 'seed')}",
    }
    if settings.monitoring.path is not None and not task_of(settings.examples).detects_drift:
        watched = ", ".join(name for name, task in TASKS.all().items() if task.detects_drift)
        rows["monitoring"] = f"predictions only: drift is watched for the task {watched} alone"
    found = findings(corpus, losses, use_case)
    if own := own_splits.found_in(file.path for file in corpus.files):
        files_of_rows = (each.place.rpartition(":")[0] for each in corpus.sample)
        rows["own splits"] = own_splits.mixed(own, files_of_rows, settings.examples.group, "rows read")
    if corpus.kept_out:
        (rows["kept out"],) = kept_out(corpus.kept_out, named=True)
    if corpus.others:
        (rows["not read"],) = left_in_place(corpus.others, named=True)
    if corpus.skipped:
        (rows["skipped"],) = skipped(corpus.skipped, named=True)
    if corpus.note:
        rows["note"] = corpus.note
    lines = [*refused, *rows.items(), *found]
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


def find_training_device(settings: UseCaseSettings) -> Device | None:
    """Return what a training would run on: this machine, or the GPUs of an instance of AWS; None where that
    is not known from here.
    """
    launcher = settings.launcher
    if launcher.kind == "local":
        return find_device(launcher.processes)
    if (
        not isinstance(launcher, SageMakerLauncherSettings | EcsLauncherSettings)
        or launcher.instance_type is None
    ):
        return None
    if isinstance(launcher, EcsLauncherSettings) and not launcher.gpus:
        return None
    instance = launcher.instance_type.removeprefix("ml.")
    # All sizes of a family have the same GPU.
    gpu = next(
        (
            row.gpu
            for row in targets(settings.planning)
            if row.flops and row.name.split(".")[0] == instance.split(".")[0]
        ),
        None,
    )
    return None if gpu is None else _gpus(gpu, launcher.processes, f" of {launcher.instance_type}")


def find_device(processes: int) -> Device:
    """Return what this machine would train on, found without loading torch."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if cards:
        models = [
            line.split(":", 1)[1].strip() for line in cards[0].read_text().splitlines() if "Model" in line
        ]
        return _gpus(models[0] if models else "GPU", min(processes, len(cards)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"{cores} CPU cores at an assumed {CPU_CORE_GFLOPS} GFLOP/s each"
    return Device(name, False, cores * CPU_CORE_GFLOPS * 1e9)


def _gpus(name: str, number: int, where: str = "") -> Device:
    tflops = round(REACHED_SHARE * (peak_flops(name, "bf16") or OTHER_PEAK) / 1e12)
    return Device(f"{number} x {name}{where} at an assumed {tflops} TFLOP/s", True, number * tflops * 1e12)


def memory_bytes(
    settings: UseCaseSettings, model: BaseModelHeader, bytes_per_value: int
) -> tuple[float, float | None]:
    """Return rough bytes of (weights, gradients and optimizer state; activations of one forward pass) in each
    training process.

    Activations after Korthikanti et al. 2022 (arXiv 2205.05198), equation 2: a layer keeps
    s*b*h*(34 + 5*a*s/h) bytes at 2 bytes a value; with checkpointing only its input, and one layer in full.
    """
    state = state_bytes(settings.training.optimizer, settings.training.weights) * model.num_parameters
    if settings.training.sharding != "none":
        state /= settings.launcher.processes
    if not (model.hidden_size and model.num_layers and model.num_heads):
        return state, None
    tokens = settings.chunks.max_tokens
    values = tokens * settings.training.micro_batch_size * model.hidden_size
    layer = values * (34 + 5 * model.num_heads * tokens / model.hidden_size) * bytes_per_value / 2
    if settings.training.gradient_checkpointing:
        return state, layer + model.num_layers * values * bytes_per_value
    return state, layer * model.num_layers


def training_tokens(settings: UseCaseSettings, corpus: Corpus) -> float | None:
    """Return the tokens that training reads over all epochs, padding not counted."""
    if corpus.mean_tokens is None or corpus.num_rows is None:
        return None
    windows = _num_windows(settings, corpus.mean_tokens)
    overlaps = (windows - 1) * settings.chunks.stride
    per_text = min(corpus.mean_tokens + overlaps, windows * settings.chunks.max_tokens)
    num_rows = _split(settings, corpus.num_rows)[0]
    return num_rows * settings.with_epochs(num_rows).training.num_epochs * per_text


def _num_windows(settings: UseCaseSettings, tokens: float) -> float:
    chunks = settings.chunks
    windows = max(1.0, (tokens - chunks.stride) / (chunks.max_tokens - chunks.stride))
    return min(windows, chunks.max_windows) if chunks.max_windows else windows


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


def _documents_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    if corpus.num_rows is None:
        return f"{settings.documents.path}: unknown number of rows; a bucket is read by the first run"
    about = "" if corpus.is_exact else "about "
    files = f"{len(corpus.files):,} file{'s' if len(corpus.files) != 1 else ''}, {_size(corpus.num_bytes)}"
    drawn = (
        ""
        if corpus.num_files_drawn is None
        else f"; {corpus.num_files_drawn:,} files, drawn from all, were looked at"
    )
    return f"{settings.documents.path}: {files}, {about}{corpus.num_rows:,} rows{drawn}"


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


def _too_few_rows(settings: UseCaseSettings, corpus: Corpus, losses: Losses) -> Iterator[str]:
    num_rows = len(losses.rows_left) if is_whole(corpus) else corpus.num_rows
    if num_rows is None:
        return
    train, least = _split(settings, num_rows)[0], settings.snapshot.min_train_rows
    if train < least:
        yield (
            f"about {train:,} training rows, fewer than snapshot.min_train_rows ({least:,}): deliver more"
            " rows, or lower it"
        )


def _epochs(settings: UseCaseSettings, corpus: Corpus) -> str:
    if settings.training.epochs is not None:
        return _chosen(settings, "training", "epochs")
    if corpus.num_rows is None:
        return f"{settings.training.num_epochs:g} or more, by the number of rows (default)"
    num_rows = _split(settings, corpus.num_rows)[0]
    epochs = settings.with_epochs(num_rows).training.num_epochs
    return f"{epochs:g} (default for {num_rows:,} rows)"


def _windows_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    chosen = (
        f"tokens {_chosen(settings, 'chunks', 'max_tokens')}, stride {_chosen(settings, 'chunks', 'stride')}"
    )
    if corpus.mean_tokens is None:
        return f"{chosen}; text length unknown"
    windows = _num_windows(settings, corpus.mean_tokens)
    return f"{chosen}; a text has about {corpus.mean_tokens:,.0f} tokens, so {windows:.1f} windows"


def _memory_line(settings: UseCaseSettings, model: BaseModelHeader, device: Device | None) -> str:
    training = settings.training
    on_gpu = device is not None and device.is_gpu
    width = 4 if training.weights == "fp32" and (training.precision == "fp32" or not on_gpu) else 2
    state, activations = memory_bytes(settings, model, width)
    name = "AdamW" if training.optimizer == "adamw" else training.optimizer
    a_parameter = f"{state_bytes(training.optimizer, training.weights)} bytes a parameter"
    processes = settings.launcher.processes
    each = f", in each of {processes} processes" if processes > 1 else ""
    if training.sharding != "none":
        where = ", in the host's memory" if training.sharding == "fsdp2_offload" else ""
        a_parameter += f", of which each process holds a part in {processes}{where}"
    parts = f"{_size(state)} weights, gradients and {name} state ({a_parameter})"
    if activations is None:
        return f"rough: {parts} + unknown activations{each}"
    batch = f"{settings.training.micro_batch_size} x {settings.chunks.max_tokens} tokens"
    return f"rough: {_size(state + activations)} = {parts} + {_size(activations)} activations ({batch}){each}"


def _time_line(
    settings: UseCaseSettings, model: BaseModelHeader, corpus: Corpus, device: Device | None
) -> str:
    tokens = training_tokens(settings, corpus)
    if tokens is None:
        return (
            "unknown:"
            f" {'the documents are in a bucket' if corpus.num_rows is None else 'no text could be read'}"
        )
    if device is None:
        return (
            f"unknown on the machine of launcher.kind: {settings.launcher.kind}; `fullft plan` compares"
            " machines"
        )
    # Looking a token up costs nothing, so the vocabulary's tables are left out of N.
    parameters = model.num_parameters - model.num_vocabulary_parameters
    if settings.training.gradient_checkpointing:
        per_token, how = 8, "8 (6 and a second forward pass)"
    else:
        per_token, how = 6, "6"
    hours = per_token * parameters * tokens / device.flops / 3600
    limit = settings.planning.max_hours
    over = f"; more than planning.max_hours ({limit:g})" if hours > limit else ""
    operations = f"{how} x {_count(parameters)} parameters x {_count(tokens)} tokens"
    return f"rough: {_duration(hours)} = {operations} on {device.name}{over}"


def _precision_meant(settings: UseCaseSettings, device: Device | None) -> str:
    if settings.training.precision != "auto":
        return ""
    if device is None:
        return ": as the machine has it"
    return ": bf16 or fp16, as the GPU has it" if device.is_gpu else ": bf16 on a CPU with AMX, else fp32"


def _chosen(settings: UseCaseSettings, *key: str) -> str:
    """Return a setting's value, marked where the YAML does not give it."""
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
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    for size, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.1f} {suffix}"
    return f"{number:.0f} bytes"


def _duration(hours: float) -> str:
    if hours * 60 < 1:
        return "under a minute"
    if hours < 2:
        minutes = round(hours * 60)
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
