"""What `fullft check` says within seconds, before a model is loaded: does the YAML fit the data?"""

from collections.abc import Iterator

from fullft_assets.base_model import find_base_model, read_header
from fullft_assets.checking.corpus import READ_BYTES, Corpus, look_at_documents
from fullft_assets.checking.sample import field_problems, group_findings, id_findings, label_findings
from fullft_assets.checking.yaml_source import Key, read_source
from fullft_assets.documents.delivery import left_in_place, skipped
from fullft_assets.planning import state_bytes
from fullft_assets.settings import UseCaseSettings
from fullft_assets.settings.use_case import UseCase


def check_use_case(use_case: UseCase) -> str:
    """Return the lines that `fullft check` prints about a use case.

    Raises:
        SettingsError: there is no row, or the rows do not have a field that the settings name.
    """
    settings = use_case.settings
    model = read_header(find_base_model(settings, use_case.project_root))
    corpus = look_at_documents(use_case)
    _refuse(use_case, corpus)
    reads = f", reads up to {model.max_positions:,} tokens" if model.max_positions else ""
    width = state_bytes(settings.training.optimizer, settings.training.weights)
    rows = {
        "model": (
            f"{settings.base_model}: {model.model_type}, {_scaled(model.num_parameters, 1000, _COUNTS)}"
            f" parameters in {model.dtype} ({_size(model.weights_bytes)}){reads},"
            f" revision {model.revision[:12]}"
        ),
        "documents": _documents_line(settings, corpus),
        "memory": (
            f"{_size(width * model.num_parameters)} for weights, gradients, moments ({width} bytes a"
            " parameter), and activations, which `fullft plan` counts"
        ),
        "verdict": (
            f"unknown before ingestion; needs {settings.release.min_effective_groups:g} test groups"
            " (release.min_effective_groups)"
        ),
    }
    if corpus.others:
        (rows["not read"],) = left_in_place(corpus.others, named=True)
    if corpus.skipped:
        (rows["skipped"],) = skipped(corpus.skipped, named=True)
    if corpus.note:
        rows["note"] = corpus.note
    rows["next"] = (
        f"`fullft ingest {use_case.name}` counts exactly what is quarantined and how rows are split"
    )
    lines = [
        *rows.items(),
        *label_findings(corpus.sample, settings.examples),
        *group_findings(corpus.sample, settings),
        *id_findings(corpus.sample),
    ]
    return "\n".join(
        [
            f"{use_case.name}: ok",
            *(f"  {name:<10} {text}" for name, text in lines),
        ]
    )


def _refuse(use_case: UseCase, corpus: Corpus) -> None:
    source = None
    for key, message in (*_no_row(corpus), *field_problems(corpus.sample, use_case.settings)):
        source = source or read_source(use_case.yaml_path, use_case.document)
        source.add(key, message)
    if source is not None:
        source.raise_problems()


def _no_row(corpus: Corpus) -> Iterator[tuple[Key, str]]:
    if corpus.files and not corpus.sample and not corpus.has_unopened:
        yield (
            ("documents", "path"),
            f"no whole row in the {READ_BYTES // 2**20} MiB that are looked at; split rows that are"
            " longer, and of .json files that are one object name the records in documents.records"
            if corpus.is_cut
            else f"no row in {len(corpus.files):,} file(s){f': {corpus.note}' if corpus.note else ''}",
        )


def _documents_line(settings: UseCaseSettings, corpus: Corpus) -> str:
    if settings.documents.path.startswith("s3://"):
        return f"{settings.documents.path}: a bucket is read by the first run"
    sample_source = (
        f" of {corpus.num_files_drawn:,} files, drawn from all," if corpus.num_files_drawn is not None else ""
    )
    return (
        f"{settings.documents.path}: {len(corpus.files):,} file{'s' if len(corpus.files) != 1 else ''},"
        f" {_size(sum(file.bytes for file in corpus.files))}; a sample of {len(corpus.sample):,} rows"
        f"{sample_source} was read"
    )


_COUNTS = ("", "k", "M", "B", "T")


def _size(number: float) -> str:
    return _scaled(number, 1024, (" bytes", " KiB", " MiB", " GiB", " TiB"))


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    power = next((power for power in range(4, 0, -1) if number >= base**power), 0)
    return f"{number / base**power:.{1 if power else 0}f}{units[power]}"
