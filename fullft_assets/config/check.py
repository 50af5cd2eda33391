"""check: a use case in a second, before a model is loaded: `python -m fullft_assets.config.check USE_CASE`.

Prints what would be trained on what, rough memory and time, and which defaults were chosen; or, on
stderr, one line for each thing that is wrong. Memory and time here are arithmetic on assumptions that
are printed with them; the feasibility plan measures.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from fullft_assets.base_model import BaseModelHeader, find_base_model, read_header
from fullft_assets.config.validation import DEFS, find_use_case, find_use_cases, load_use_case
from fullft_assets.documents.delivery import left_in_place
from fullft_assets.documents.formats import (
    ENDINGS,
    argilla,
    arrow,
    compression_of,
    csv_rows,
    ending_of,
    ground_truth,
    json_arrays,
    json_lines,
    label_studio,
    parquet,
    plain,
)
from fullft_assets.documents.formats.delivered import Delivered, Unreadable
from fullft_assets.documents.formats.json_lines import Record
from fullft_assets.documents.formats.rows import Wanted, content_of
from fullft_assets.documents.sources import Folder, SourceFile
from fullft_assets.errors import FullftError, SettingsError
from fullft_assets.planning import state_bytes
from fullft_assets.settings import DocumentsSettings, UseCaseSettings
from fullft_assets.settings.use_case import UseCase

#: Rows are counted in this many bytes, and estimated from them beyond.
COUNTED_BYTES = 50 * 2**20
SAMPLE_ROWS = 100
SAMPLE_CHARACTERS = 20_000
#: What stands between two elements of a JSON array.
_ELEMENT = re.compile(r"[\s,]*(?=[^\s,\]])")
#: Floating-point operations a second that training reaches on one CPU core (MiniLM in fp32 reached 70).
CPU_CORE_GFLOPS = 60
#: 40% of the vendor's dense 16-bit peak, in TFLOP/s; the first name that the card's name holds.
GPU_TFLOPS = {"B200": 900, "H200": 395, "H100": 395, "A100": 125, "L40S": 145, "L4": 48, "A10": 50, "V100": 50}
OTHER_GPU_TFLOPS = 40


@dataclass(frozen=True)
class Corpus:
    """The delivered documents, as far as a quick look tells. None: not known."""

    files: list[SourceFile]
    num_rows: int | None
    #: False: `num_rows` is estimated from the first `COUNTED_BYTES`.
    is_exact: bool
    #: Mean tokens of a sampled text, special tokens included.
    mean_tokens: float | None
    #: Something that looks wrong in the sampled rows.
    note: str | None
    #: Delivered files whose endings are not read.
    others: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Device:
    """What training would run on, and the speed assumed for it."""

    name: str
    is_gpu: bool
    flops: float


def check_use_case(use_case: UseCase) -> str:
    """Return the lines that a person wants to see before training.

    Raises:
        SettingsError: the base model's tokenizer cannot be read.
    """
    settings = use_case.settings
    model = read_header(find_base_model(settings, use_case.project_root))
    corpus = look_at_documents(use_case, model)
    device = find_device(settings.launcher.processes)
    rows = {
        "model": _model_line(settings, model),
        "documents": _documents_line(settings, corpus),
        "split": _split_line(settings, corpus),
        "windows": _windows_line(settings, corpus),
        "memory": _memory_line(settings, model, device),
        "time": _time_line(settings, model, corpus, device),
        "precision": _chosen(settings, "training", "precision") + _precision_meant(settings, device),
        "batch": f"rows a step {_chosen(settings, 'training', 'batch_size')}, "
        f"a forward pass {_chosen(settings, 'training', 'micro_batch_size')}, "
        f"gradient checkpointing {_chosen(settings, 'training', 'gradient_checkpointing')}",
        "learning": f"rate {_chosen(settings, 'training', 'learning_rate')}, "
        f"{_chosen(settings, 'training', 'scheduler')}, epochs {_chosen(settings, 'training', 'epochs')}",
        "decides": f"metric {_metric(settings)}, seed {_chosen(settings, 'seed')}",
    }
    if settings.monitoring.path is not None and not settings.examples.has_one_label:
        watched = "the task classification with one label a row"
        rows["monitoring"] = f"none: drift is watched for {watched} alone, so {settings.monitoring.path} is not read"
    if corpus.others:
        (rows["not read"],) = left_in_place(corpus.others)
    if corpus.note:
        rows["note"] = corpus.note
    return "\n".join([f"{use_case.name}: ok", *(f"  {name:<10} {text}" for name, text in rows.items())])


def look_at_documents(use_case: UseCase, model: BaseModelHeader) -> Corpus:
    """Count rows within `COUNTED_BYTES` and tokenise the first `SAMPLE_ROWS` texts; a bucket is not looked at.

    Raises:
        DataError: a folder cannot be listed.
        SettingsError: the base model's tokenizer cannot be read.
    """
    settings = use_case.settings
    if settings.documents.path.startswith("s3://"):
        return Corpus(files=[], num_rows=None, is_exact=False, mean_tokens=None, note=None)
    folder = use_case.resolve(settings.documents.path)
    source = Folder(folder)
    files = source.files()
    count = _Count()
    for file in files:
        count.add(folder / file.path, file, settings.documents)
    sample = list(islice(_records(folder, files, settings), SAMPLE_ROWS))
    texts = [found.text for found in sample if found.text]
    note = count.note or (_note(sample, settings) if texts else _no_text_note(sample) if _can_be_sampled(files, settings) else None)
    return Corpus(files, count.num_rows, count.is_exact, _mean_tokens(texts, model), note, source.others)


def find_device(processes: int) -> Device:
    """Return what this machine would train on, found without loading torch."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if cards:
        models = [line.split(":", 1)[1].strip() for line in cards[0].read_text().splitlines() if "Model" in line]
        name = models[0] if models else "GPU"
        tflops = next((speed for known, speed in GPU_TFLOPS.items() if known in name), OTHER_GPU_TFLOPS)
        used = min(processes, len(cards))
        return Device(f"{used} x {name} at an assumed {tflops} TFLOP/s", True, used * tflops * 1e12)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"{cores} CPU cores at an assumed {CPU_CORE_GFLOPS} GFLOP/s each"
    return Device(name, False, cores * CPU_CORE_GFLOPS * 1e9)


def memory_bytes(settings: UseCaseSettings, model: BaseModelHeader, bytes_per_value: int) -> tuple[float, float | None]:
    """Return rough bytes of (weights, gradients and optimizer state; activations of one forward pass) in each training process.

    Activations after Korthikanti et al. 2022 (arXiv 2205.05198), equation 2: a layer keeps
    s*b*h*(34 + 5*a*s/h) bytes at 2 bytes a value; with checkpointing its input alone and one layer whole.
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
    return _split(settings, corpus.num_rows)[0] * settings.training.epochs * per_text


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


def _form(path: str, settings: DocumentsSettings) -> str:
    """Return how the records of a file are written down; what an export means by them is another matter."""
    by_ending = ENDINGS.get(ending_of(path), "jsonl")
    if settings.format in ("label_studio", "argilla"):
        return by_ending if by_ending in ("csv", "parquet", "arrow") else "json"
    return by_ending if settings.format == "auto" else settings.format


class _Count:
    """Counts rows: in files of lines within `COUNTED_BYTES`, from the metadata of Parquet and Arrow, else one a file."""

    def __init__(self) -> None:
        self.is_exact = True
        self.note: str | None = None
        self._known_rows = 0
        self._line_rows = 0
        self._line_bytes = 0
        self._seen_bytes = 0
        self._unpacked_bytes = 0

    @property
    def num_rows(self) -> int:
        """Rows in all, those of lines that were not read estimated from the others."""
        if self.is_exact or not self._seen_bytes:
            return self._known_rows + self._line_rows
        return self._known_rows + round(self._line_rows * self._line_bytes / self._seen_bytes)

    def add(self, path: Path, file: SourceFile, settings: DocumentsSettings) -> None:
        """Count one file. One that cannot be read is noted: ingesting leaves it out as well."""
        form = _form(file.path, settings)
        try:
            if form in ("parquet", "arrow"):
                self._known_rows += _num_columnar_rows(path, form)
            elif form in ("text", "html", "pdf"):
                self._known_rows += 1
            else:
                self._add_lines(path, file, form)
        except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's own are ValueErrors
            why = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.note = self.note or f"{path}: cannot be read ({why}); it will be left out"

    def _add_lines(self, path: Path, file: SourceFile, form: str) -> None:
        self._line_bytes += file.bytes
        budget = COUNTED_BYTES - self._unpacked_bytes
        if budget <= 0:
            self.is_exact = False
            return
        rows, unpacked, packed = _count_rows(path, form, budget)
        self._line_rows += rows
        self._unpacked_bytes += unpacked
        self._seen_bytes += packed
        self.is_exact = self.is_exact and packed >= file.bytes


def _num_columnar_rows(path: Path, form: str) -> int:
    import pyarrow as pa

    if form == "parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(str(path)).num_rows
    # Mapped into memory: only the sizes of the batches are looked at.
    with pa.memory_map(str(path)) as data:
        if data.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(data)
            return sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
        data.seek(0)
        return sum(batch.num_rows for batch in pa.ipc.open_stream(data))


def _count_rows(path: Path, form: str, budget: int) -> tuple[int, int, int]:
    """Return (rows, bytes read, bytes of the file that they are packed in), reading about `budget` bytes at most."""
    read = 0
    with path.open("rb") as packed:

        def lines() -> Iterator[bytes]:
            nonlocal read
            for line in _unpacked(packed, path.name):
                read += len(line)
                yield line
                if read >= budget:
                    return

        found = lines()
        if form == "csv":
            # A quoted field may hold line ends: only a CSV reader counts rows.
            reader = csv_rows.reader_of((line.decode("utf-8", errors="replace") for line in found), path.name)
            rows = max(0, sum(1 for row in reader if row) - 1)
        else:
            first = next((line for line in found if not line.isspace()), b"")
            if form == "json" and first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                rows = _num_elements(b"".join([first, *found]).decode("utf-8-sig", errors="replace"))
            else:
                rows = bool(first) + sum(1 for line in found if not line.isspace())
        return rows, read, path.stat().st_size if read < budget else min(packed.tell(), path.stat().st_size)


def _unpacked(packed: BinaryIO, name: str) -> Iterable[bytes]:
    compression = compression_of(name)
    if compression == "gzip":
        return gzip.GzipFile(fileobj=packed)
    if compression is None:
        return packed
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(packed), compression))


def _num_elements(text: str) -> int:
    """Return the number of elements of a JSON array, of which the end may be missing."""
    decoder, at, number = json.JSONDecoder(), text.index("[") + 1, 0
    while (match := _ELEMENT.match(text, at)) is not None:
        try:
            _, at = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        number += 1
    return number


@dataclass(frozen=True)
class Sampled:
    """One sampled record: its fields, its text, and the field that the text was looked for in."""

    record: dict[str, Any]
    text: str | None
    field: str
    #: Why there is no text.
    problem: str | None
    #: False: an export whose label is not a field of its record.
    is_plain: bool


def _records(folder: Path, files: list[SourceFile], settings: UseCaseSettings) -> Iterator[Sampled]:
    """Yield the records that can be read, by the pipeline's own readers."""
    wanted = Wanted.of(settings.documents, settings.examples)
    for file in files:
        delivered = Delivered(folder / file.path, file.path, settings.documents.encoding or "utf-8-sig")
        try:
            for _, record in _read_records(delivered, _form(file.path, settings.documents), file.bytes):
                if isinstance(record, dict):
                    yield _sampled(record, _shape(record, file.path, settings.documents, wanted), wanted)
        except (OSError, Unreadable, UnicodeError):
            continue  # Ingesting names it; a look ahead goes on.


def _can_be_sampled(files: list[SourceFile], settings: UseCaseSettings) -> bool:
    return any(_form(file.path, settings.documents) not in ("html", "pdf") for file in files)


def _read_records(file: Delivered, form: str, size: int) -> Iterator[tuple[int, Record]]:
    if form == "text":
        text = file.path.read_text(encoding=file.encoding, errors="replace")
        return iter([(1, plain.document(file.name, text))])
    if form in ("html", "pdf") or (form == "json" and size > COUNTED_BYTES):
        return iter(())  # whole files that take long to read
    readers = {"csv": csv_rows, "json": json_arrays, "parquet": parquet, "arrow": arrow}
    return readers.get(form, json_lines).records(file)


def _shape(record: dict[str, Any], name: str, settings: DocumentsSettings, wanted: Wanted) -> str:
    """Return what a record is: of Ground Truth, of an annotation tool, or plain fields."""
    by_ending = ENDINGS.get(ending_of(name)) if settings.format == "auto" else settings.format
    if by_ending != "json":
        return by_ending if by_ending in ("ground_truth", "label_studio", "argilla") else "plain"
    if label_studio.is_task(record):
        return "label_studio"
    return "argilla" if argilla.is_record(record) else "ground_truth" if ground_truth.is_manifest(record, wanted) else "plain"


def _sampled(record: dict[str, Any], shape: str, wanted: Wanted) -> Sampled:
    field = wanted.text or ("source" if shape == "ground_truth" else "text")
    if shape in ("label_studio", "argilla"):
        [(_, row)] = (label_studio if shape == "label_studio" else argilla).rows([(1, record)], wanted)
    else:
        row = content_of(record, wanted, field)
    return Sampled(record, row.get("text"), field, row.get("problem"), shape in ("plain", "ground_truth"))


def _mean_tokens(texts: list[str], model: BaseModelHeader) -> float | None:
    if not texts:
        return None
    from tokenizers import Tokenizer

    path = model.folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read.
        raise SettingsError(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    total = 0.0
    for text in texts:
        shown = text[:SAMPLE_CHARACTERS]
        total += len(tokenizer.encode(shown).ids) * len(text) / len(shown)
    return total / len(texts)


def _note(sample: list[Sampled], settings: UseCaseSettings) -> str | None:
    label = settings.examples.label
    if label is None or any(label in found.record or not found.is_plain for found in sample):
        return None
    return _missing_field("examples.label", label, sample)


def _no_text_note(sample: list[Sampled]) -> str | None:
    if not sample:
        return "no row could be read; rows that are not JSON objects are quarantined"
    field, problem = sample[0].field, sample[0].problem
    if problem not in (None, f"no field `{field}`"):
        return f"none of the first {len(sample)} rows can be used; the first: {problem}"
    if any(field in found.record for found in sample):
        return f"documents.text: `{field}` is empty in each of the first {len(sample)} rows; such rows are quarantined"
    return _missing_field("documents.text", field, sample)


def _missing_field(key: str, field: str, sample: list[Sampled]) -> str:
    fields = list(dict.fromkeys(name for found in sample for name in found.record if name))
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
    mend = f"did you mean `{near[0]}`?" if near else f"their fields: {', '.join(fields)}"
    return f"{key}: none of the first {len(sample)} rows has a `{field}`; {mend}"


def _model_line(settings: UseCaseSettings, model: BaseModelHeader) -> str:
    reads = f", reads up to {model.max_positions:,} tokens" if model.max_positions else ""
    return (
        f"{settings.base_model}: {model.model_type}, {_count(model.num_parameters)} parameters in {model.dtype} "
        f"({_size(model.weights_bytes)}){reads}, revision {model.revision[:12]}"
    )


def _documents_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    if corpus.num_rows is None:
        return f"{settings.documents.path}: unknown number of rows; a bucket is read by the first run"
    about = "" if corpus.is_exact else "about "
    files = f"{len(corpus.files):,} file{'s' if len(corpus.files) != 1 else ''}, {_size(corpus.num_bytes)}"
    return f"{settings.documents.path}: {files}, {about}{corpus.num_rows:,} rows"


def _split_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    if corpus.num_rows is None:
        shares = settings.snapshot
        return f"unknown; {shares.test_share:.0%} of the groups for the test set, {shares.validation_share:.0%} for validation"
    train, validation, test = _split(settings, corpus.num_rows)
    return f"about {train:,} train, {validation:,} validation, {test:,} test rows, before quarantine and near-duplicates"


def _windows_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    chosen = f"tokens {_chosen(settings, 'chunks', 'max_tokens')}, stride {_chosen(settings, 'chunks', 'stride')}"
    if corpus.mean_tokens is None:
        return f"{chosen}; text length unknown"
    windows = _num_windows(settings, corpus.mean_tokens)
    return f"{chosen}; a text has about {corpus.mean_tokens:,.0f} tokens, so {windows:.1f} windows"


def _memory_line(settings: UseCaseSettings, model: BaseModelHeader, device: Device) -> str:
    training = settings.training
    width = 4 if training.weights == "fp32" and (training.precision in ("fp32", "tf32") or not device.is_gpu) else 2
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


def _time_line(settings: UseCaseSettings, model: BaseModelHeader, corpus: Corpus, device: Device) -> str:
    tokens = training_tokens(settings, corpus)
    if tokens is None:
        return f"unknown: {'the documents lie in a bucket' if corpus.num_rows is None else 'no text could be read'}"
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


def _precision_meant(settings: UseCaseSettings, device: Device) -> str:
    if settings.training.precision != "auto":
        return ""
    return ": bf16 or fp16, as the GPU has it" if device.is_gpu else ": fp32 on a CPU"


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
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def main(arguments: list[str] | None = None) -> int:
    """Check one use case or all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fullft_assets.config.check", description="Check a use case in a second.")
    parser.add_argument("use_case", nargs="?", metavar="USE_CASE", help="its name, or the path of its defs.yaml")
    parser.add_argument("--all", action="store_true", help="check every use case of the folder")
    parser.add_argument("--defs", type=Path, default=DEFS, metavar="DIR", help="folder with the use cases")
    options = parser.parse_args(arguments)
    if options.all == (options.use_case is not None):
        parser.error("give a USE_CASE, or --all")
    try:
        paths = find_use_cases(options.defs) if options.all else [_find(options.use_case, options.defs)]
    except FullftError as error:
        print(error, file=sys.stderr)
        return 1
    reports, problems = [], []
    for path in paths:
        try:
            reports.append(check_use_case(load_use_case(path)))
        except FullftError as error:
            problems.append(str(error))
    if not paths:
        problems.append(f"no use case in {options.defs}; `dg scaffold defs fullft_assets.FullFineTune NAME` writes one")
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    print("\n\n".join(reports))
    return 0


def _find(name: str, defs: Path) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    return path / "defs.yaml" if (path / "defs.yaml").is_file() else find_use_case(name, defs)


if __name__ == "__main__":
    sys.exit(main())
