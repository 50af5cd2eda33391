"""Rows whose label and prediction contradict each other: in the page by their ids, and as a file for annotators."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

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


def label_errors_file(sources: Iterable[str | None]) -> str:
    """Return the name of the file for annotators: of the kind that most of these files are, which the labels came in."""
    kinds = Counter(kind for source in sources if (kind := PurePosixPath((source or "").removesuffix(".gz")).suffix.lower()) in _DELIMITERS)
    return f"{LABEL_ERRORS}{max(kinds, key=lambda kind: kinds[kind]) if kinds else '.jsonl'}"


def write_label_errors(path: Path, rows: Sequence[DoubtfulRow], label_field: str, id_field: str = "id") -> None:
    """Write them with the fields that id and label came in, and `suggested` and `probability`; an annotator changes the label."""
    write_list(path, [
        {id_field: row.id, label_field: row.label, "suggested": row.predicted, "probability": round(row.probability, 4)} for row in rows
    ])  # fmt: skip


def read_list(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file beside a report, whose first field is the id of a document; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        delimiter = _DELIMITERS.get(path.suffix)
        return [json.loads(line) for line in file] if delimiter is None else list(csv.DictReader(file, delimiter=delimiter))


def write_list(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write such a file: JSON lines, or a table where its name says so."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if (delimiter := _DELIMITERS.get(path.suffix)) is None:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif rows:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
