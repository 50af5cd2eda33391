"""Predictions that the user brings from another system (a vendor, a RAG): read, kept in the store, and
aligned with the test rows.

A file has one JSON object a line: the row's `id` and what the system answered under the name of the task's
target (`label`, `labels` or `spans`). The store keeps a copy, which a remote process reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.errors import DataError
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import Split
from fullft_assets.snapshot.locations import read_index
from fullft_assets.store import CheckOutcome, Draft, Manifest, Store
from fullft_assets.store.hashing import file_digest
from fullft_assets.store.metadata import Metadata
from fullft_assets.task import task_of

#: Stage of the copies, and the name of their artifact among the inputs of an evaluation.
STAGE = "external_predictions"
VERSION = "1"


class ExternalMetadata(Metadata):
    """Metadata of the copies: rows of each file, by the system's name."""

    num_rows: dict[str, int]


def keep(store: Store, case: str, settings: UseCaseSettings, root: Path) -> Manifest | None:
    """Copy the files of `evaluation.external` into the store; None where there are none.

    Raises:
        DataError: a file is missing or has a line that cannot be read.
    """
    answers = settings.evaluation.external
    files = {name: root / answer for name, answer in answers.items() if isinstance(answer, str)}
    if not files:
        return None
    target = task_of(settings.examples).target
    assert target is not None, "the check of the YAML refuses files for tasks without labels"
    for name, path in files.items():
        if not path.is_file():
            raise DataError(
                f"evaluation.external: {name}: there is no file {path}; write it, or remove the entry"
            )

    def write(draft: Draft) -> tuple[Mapping[str, Any], list[CheckOutcome]]:
        counts = {}
        for name, path in files.items():
            rows = _read(name, path, target)
            lines = (
                json.dumps({"id": id_, target: answer}, ensure_ascii=False) for id_, answer in rows.items()
            )
            (draft.path / f"{name}.jsonl").write_text(
                "".join(f"{line}\n" for line in lines), encoding="utf-8"
            )
            counts[name] = len(rows)
        return ExternalMetadata(num_rows=counts).as_dict(), []

    inputs = {name: file_digest(path) for name, path in files.items()}
    return store.ensure(
        case, STAGE, write, version=VERSION, settings={"target": target}, inputs=inputs, seed=0
    )


def require_complete(store: Store, copies: Manifest, snapshot: Manifest) -> None:
    """Check, before anything costs time, that the files have every test row of a snapshot.

    Raises:
        DataError: rows are missing; the message says how many.
    """
    index = read_index(store, snapshot)
    ids = [
        id_
        for id_, split in zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True)
        if split == "test"
    ]
    for name in ExternalMetadata.of(copies).num_rows:
        answers(store.folder(copies), name, copies.settings["target"], ids)


def answers(folder: Path, name: str, target: str, ids: Sequence[str]) -> list[Any]:
    """Return what a system answered for each row, in their order.

    Raises:
        DataError: rows are missing; the message says how many.
    """
    answer_of = _read(name, folder / f"{name}.jsonl", target)
    missing = [id_ for id_ in ids if id_ not in answer_of]
    if missing:
        raise DataError(
            f"evaluation.external: {name}: {len(missing):,} of {len(ids):,} test rows have no prediction, the"
            f" first is {missing[0]!a}; add them to its file, or remove the entry"
        )
    return [answer_of[id_] for id_ in ids]


def positions(name: str, names: Sequence[Sequence[str]], labels: Sequence[str]) -> list[list[int]]:
    """Return label names as positions in the label order.

    Args:
        names: names of each row.

    Raises:
        DataError: a name is no label of the snapshot.
    """
    place = {label: number for number, label in enumerate(labels)}
    unknown = [label for row in names for label in row if label not in place]
    if unknown:
        num_rows = sum(any(label not in place for label in row) for row in names)
        raise DataError(
            f"evaluation.external: {name}: {num_rows:,} rows have a label that the snapshot lacks, the first"
            f" is {str(unknown[0])[:80]!a}; map it to one of {', '.join(labels)}"
        )
    return [[place[label] for label in row] for row in names]


def spans(
    name: str, answers: Sequence[Sequence[Mapping[str, Any]]], rows: Split, labels: Sequence[str]
) -> list[list[tuple[int, int, int]]]:
    """Return spans (start, end exclusive, position of the label) of each row.

    Raises:
        DataError: one is outside of its text, or has a label that the snapshot lacks.
    """
    numbers = positions(name, [[str(span["label"]) for span in row] for row in answers], labels)
    spans_of_rows = [
        [(span["start"], span["end"], number) for span, number in zip(row, row_labels, strict=True)]
        for row, row_labels in zip(answers, numbers, strict=True)
    ]
    for id_, text, row in zip(rows.ids, rows.texts, spans_of_rows, strict=True):
        for start, end, _ in row:
            if not 0 <= start < end <= len(text):
                raise DataError(
                    f"evaluation.external: {name}: row {id_!a} has a span {start} to {end} in a text of"
                    f" {len(text):,} characters"
                )
    return spans_of_rows


def _read(name: str, path: Path, target: str) -> dict[str, Any]:
    answer_of: dict[str, Any] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            id_, answer = str(row["id"]), row[target]
            is_fine = _FITS[target](answer)
        except (ValueError, KeyError, TypeError):
            id_ = ""
            answer = None
            is_fine = False
        if not is_fine:
            raise DataError(
                f"evaluation.external: {name}: {path.name}, line {number}: wanted is {_WANTED[target]}"
            )
        if id_ in answer_of:
            raise DataError(
                f"evaluation.external: {name}: {path.name}, line {number}: {id_!a} has a prediction above"
                " already; remove one"
            )
        answer_of[id_] = answer
    return answer_of


def _is_span(span: Any) -> bool:
    return type(span["start"]) is int and type(span["end"]) is int and isinstance(span["label"], str)


_FITS = {
    "label": lambda answer: isinstance(answer, str),
    "labels": lambda answer: isinstance(answer, list) and all(isinstance(label, str) for label in answer),
    "spans": lambda answer: isinstance(answer, list) and all(_is_span(span) for span in answer),
}
_WANTED = {
    "label": '{"id": "...", "label": "..."}',
    "labels": '{"id": "...", "labels": ["..."]}',
    "spans": '{"id": "...", "spans": [{"start": 0, "end": 4, "label": "..."}]}',
}
