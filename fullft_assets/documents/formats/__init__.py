"""formats: a delivered file -> (row number, record or problem), one module a format.

Containers (`json_lines`, `json_arrays`, `csv_rows`, `parquet`, `arrow`, `plain`, `html_text`, `pdf`) yield
records; what a record means is told by `rows` (plain fields, `chat`, `labels`) or by the module of the
tool that exported it (`ground_truth`, `label_studio`, `argilla`).
"""

from __future__ import annotations

from pathlib import PurePosixPath

#: Format by ending, without that of a compression; `json` is told apart by its content.
ENDINGS: dict[str, str] = {
    ".manifest": "ground_truth",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
}
#: Codec (by the name that pyarrow gives it) by ending.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
#: Formats that are unpacked on the way.
LINE_FORMATS = ("ground_truth", "jsonl", "json", "csv")


def is_readable(name: str) -> bool:
    """Return whether files of such a name are read: by its ending, packed or not."""
    form = ENDINGS.get(ending_of(name))
    return form is not None and (compression_of(name) is None or form in LINE_FORMATS)


def ending_of(name: str) -> str:
    """Return the ending in lower case, without that of a compression."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def compression_of(name: str) -> str | None:
    """Return the codec that a file is packed with, or None."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)
