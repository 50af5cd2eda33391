"""Rows whose label and prediction contradict each other: in the page by their ids, and as a file for
annotators.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fullft_assets.escaping import from_cell, to_cell
from fullft_assets.settings import DocumentsSettings

#: In the folder of an evaluation: rows whose label is probably wrong, without their texts.
LABEL_ERRORS = "label_errors"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class DoubtfulRow:
    """A row whose label the model contradicts.

    Attributes:
        predicted: the likeliest label, with its `probability`.
        given: the probability of the row's own label.
    """

    id: str
    label: str
    predicted: str
    probability: float
    given: float


def label_errors_file(sources: Iterable[str | None], settings: DocumentsSettings) -> str:
    """Return the name of the file for annotators: of the kind that most of these files are, which the labels
    came in.

    It is JSON lines where the settings say that tables have no quotes or another header, which such a table
    would not be read by.
    """
    if settings.csv.quoting == "none" or settings.header is not None:
        return f"{LABEL_ERRORS}.jsonl"
    kinds = Counter(
        kind
        for source in sources
        if (kind := PurePosixPath((source or "").removesuffix(".gz")).suffix.lower()) in _DELIMITERS
    )
    return f"{LABEL_ERRORS}{max(kinds, key=lambda kind: kinds[kind]) if kinds else '.jsonl'}"


def write_label_errors(
    path: Path,
    rows: Sequence[DoubtfulRow],
    label_field: str,
    id_field: str = "id",
    delimiter: str | None = None,
) -> None:
    """Write them with the fields that id and label came in, and `suggested` and `probability`; an annotator
    changes the label.

    Args:
        delimiter: `documents.csv.delimiter`, by which a table is read when it is delivered again.
    """
    write_list(
        path,
        [
            {
                id_field: row.id,
                label_field: row.label,
                "suggested": row.predicted,
                "probability": round(row.probability, 4),
            }
            for row in rows
        ],
        delimiter,
    )


def read_list(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file beside a report, whose first field is the id of a document; none where there
    is no such file.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        delimiter = delimiter_of(path)
        if delimiter is None:
            return [json.loads(line) for line in file]
        return [
            {name: from_cell(cell) for name, cell in row.items()}
            for row in csv.DictReader(file, delimiter=delimiter)
        ]


def delimiter_of(path: Path) -> str | None:
    """Return what separates the fields of such a table, whose last one is `probability`; None of JSON
    lines.
    """
    if path.suffix not in _DELIMITERS:
        return None
    with path.open(encoding="utf-8", newline="") as file:
        return file.readline().rstrip("\n").removesuffix("probability")[-1:] or _DELIMITERS[path.suffix]


def write_list(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str | None = None) -> None:
    """Write such a file: JSON lines, or a table where its name says so."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix not in _DELIMITERS:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif rows:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter=delimiter or _DELIMITERS[path.suffix], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows({name: to_cell(value) for name, value in row.items()} for row in rows)
