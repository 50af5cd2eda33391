"""The registered formats, found by name and by a file's ending."""

from __future__ import annotations

from functools import cache

from fullft_assets.documents.formats.endings import compression_of, ending_of
from fullft_assets.documents.formats.protocol import Format
from fullft_assets.errors import SettingsError
from fullft_assets.registry import Registry

_HERE = "fullft_assets.documents.formats"
#: Of a .json file the first format whose `looks_like` fits is taken.
FORMATS: Registry[Format] = Registry(
    "format",
    "fullft_assets.formats",
    {
        "label_studio": f"{_HERE}.annotations.label_studio:FORMAT",
        "argilla": f"{_HERE}.annotations.argilla:FORMAT",
        "ground_truth": f"{_HERE}.annotations.ground_truth:FORMAT",
        "jsonl": f"{_HERE}.json_lines:FORMAT",
        "json": f"{_HERE}.json_arrays:FORMAT",
        "csv": f"{_HERE}.csv_rows:FORMAT",
        "parquet": f"{_HERE}.parquet:FORMAT",
        "arrow": f"{_HERE}.arrow:FORMAT",
        "text": f"{_HERE}.plain:FORMAT",
        "html": f"{_HERE}.office.html_text:FORMAT",
        "pdf": f"{_HERE}.office.pdf:FORMAT",
        "docx": f"{_HERE}.office.docx_text:FORMAT",
        "xlsx": f"{_HERE}.office.xlsx_rows:FORMAT",
        "eml": f"{_HERE}.office.mail:FORMAT",
        "mbox": f"{_HERE}.office.mail:MBOX",
        "msg": f"{_HERE}.office.outlook:FORMAT",
        "rtf": f"{_HERE}.office.rtf_text:FORMAT",
        "xml": f"{_HERE}.office.xml_text:FORMAT",
        "zip": f"{_HERE}.office.archives:FORMAT",
        "kreuzberg": f"{_HERE}.office.kreuzberg_text:FORMAT",
    },
)


@cache
def formats_by_ending() -> dict[str, str]:
    """Return the name of the format by ending.

    Raises:
        SettingsError: two formats have the same ending, or another package's format cannot be imported.
    """
    names: dict[str, str] = {}
    for name, format_ in FORMATS.all().items():
        for ending in format_.endings:
            if ending in names:
                raise SettingsError(
                    f"format {name}: {ending} is an ending of the format {names[ending]} too; remove one of"
                    " the two packages"
                )
            names[ending] = name
    return names


def name_of_format(name: str) -> str | None:
    """Return the name of the format of a file by its ending, or None."""
    return formats_by_ending().get(ending_of(name))


def format_of(name: str) -> Format | None:
    """Return the format of a file by its ending, or None."""
    format_name = name_of_format(name)
    return None if format_name is None else FORMATS.get(format_name)


def is_readable(name: str) -> bool:
    """Return whether files of such a name are read: by its ending, packed or not."""
    format_ = format_of(name)
    return format_ is not None and (compression_of(name) is None or format_.may_be_compressed)


def reads_any_ending(format_: str) -> bool:
    """Return whether a value of `documents.format` names a format whose files are one document each: then
    every file is read, whatever its ending.
    """
    return format_ in FORMATS and FORMATS.get(format_).is_whole_file


def is_whole_file(name: str) -> bool:
    """Return whether a file of such a name is one document."""
    format_ = format_of(name)
    return format_ is not None and format_.is_whole_file


def known_endings() -> str:
    """Return all endings in words, for a message."""
    return ", ".join(formats_by_ending())
