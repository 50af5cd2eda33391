"""The list of an erasure, and what of it a use case's store holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.documents.erasure import (
    By,
    erased_digest,
    has_made_up_id,
    row_digests,
    was_found,
    write_tombstones,
)
from fullft_assets.documents.formats.names import group_key
from fullft_assets.erasure.erased_documents import DOCUMENTS, whole_artifacts
from fullft_assets.errors import DataError
from fullft_assets.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


def read_list(path: Path) -> dict[str, int]:
    """Return the lines of an erasure list with their numbers: one id or group each, as it is there; without
    blank ones.

    Raises:
        DataError: the file cannot be read, or is empty.
    """
    try:
        # Not splitlines: an id may hold what that takes for the end of a line.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a text file with one document id a line"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; give a text file with one document id a line") from error
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            numbers.setdefault(line.removesuffix("\r"), number)
    if not numbers:
        raise DataError(f"{path}: empty; give one document id a line")
    return numbers


@dataclass
class ListedDocuments:
    """What an erasure list means here.

    Attributes:
        values: ids (or groups) that documents of the store have.
        ids: own ids of the documents of these groups.
        rows: digests of documents with a made-up id.
        before: listed, and no longer in the store: an earlier erasure took them.
        missing: listed, and never in the store as far as it is known.
    """

    values: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    rows: set[str] = field(default_factory=set)
    before: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def record(self, store: Store, case: str, by: By, reason: str) -> None:
        """Write the tombstones: of what was found, and of what may yet come."""
        known = (
            {erased_digest(case, value, by) for value in self.values}
            | {erased_digest(case, id_) for id_ in self.ids}
            | self.rows
        )
        write_tombstones(store, case, sorted(known), by=by, reason=reason, found=True)
        unknown = {erased_digest(case, form, by) for line in self.missing for form in _forms(line, by)}
        write_tombstones(store, case, sorted(unknown), by=by, reason=reason)


def search(store: Store, case: str, listed: Iterable[str], by: By) -> ListedDocuments:
    """Find the documents that a list names.

    A line is an id exactly as it is, else without the white space around it, else the name of a file that is
    one document; or a group in any of its spellings.
    """
    import pyarrow as pa

    lines = list(dict.fromkeys(listed))
    met, files = _met(store, case, {form for line in lines for form in _forms(line, by)}, by)
    documents = ListedDocuments()
    for line in lines:
        value = next((form for form in _forms(line, by) if form in met), None)
        if value is None and by == "id":
            value = next((f"{form}:1" for form in _forms(line, by) if form in files), None)
        if value is not None:
            documents.values.add(value)
        else:
            (documents.before if _was_erased(store, case, line, by) else documents.missing).append(line)
    for table in _rows_of(store, case, documents.values, by):
        made_up = has_made_up_id(table)
        if by == "group":
            # The group keeps out the others: their ids would keep out the document that is there next.
            documents.ids.update(
                id_
                for id_, is_made_up in zip(table["id"].to_pylist(), made_up, strict=True)
                if not is_made_up
            )
        elif made_up.any():
            documents.rows.update(row_digests(case, table.filter(pa.array(made_up))))
    return documents


def _forms(line: str, by: By) -> list[str]:
    return [group_key(line)] if by == "group" else list(dict.fromkeys((line, line.strip())))


def _was_erased(store: Store, case: str, line: str, by: By) -> bool:
    forms = [form for form in _forms(line, by) for form in ((form, f"{form}:1") if by == "id" else (form,))]
    return any(was_found(store, case, erased_digest(case, form, by)) for form in forms)


def _met(store: Store, case: str, wanted: set[str], by: By) -> tuple[set[str], set[str]]:
    """Return which of these values documents have, and which of them are names of files that are one
    document.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    met: set[str] = set()
    files: set[str] = set()
    values = pa.array(sorted(wanted), pa.string())
    for path in _paths(store, case):
        table = pq.read_table(path, columns=[by, "source"])
        met.update(pc.unique(table[by].filter(pc.is_in(table[by], values))).to_pylist())
        if by == "id":
            named = table.filter(pc.is_in(table["source"], values))
            ids: dict[str, set[str]] = {}
            for source, id_ in zip(named["source"].to_pylist(), named["id"].to_pylist(), strict=True):
                ids.setdefault(source, set()).add(id_)
            # A file that was read by its content, whatever its ending, may have several rows.
            files.update(source for source, its in ids.items() if its == {f"{source}:1"})
    return met, files


def _rows_of(store: Store, case: str, values: set[str], by: By) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pa.array(sorted(values), pa.string())
    for path in _paths(store, case):
        hit = pc.is_in(pq.read_table(path, columns=[by])[by], wanted)
        if pc.any(hit).as_py():
            yield pq.read_table(path).filter(hit)


def _paths(store: Store, case: str) -> Iterator[Path]:
    for stage, file in DOCUMENTS.items():
        for _, folder in whole_artifacts(store, case, stage):
            yield folder / file
