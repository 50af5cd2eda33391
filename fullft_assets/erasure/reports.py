"""Takes erased documents out of evaluation reports, and reports what an erasure did."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.artifacts import EVALUATION_REPORT
from fullft_assets.erasure.erased_documents import ErasedDocuments, whole_artifacts
from fullft_assets.report import LABEL_ERRORS, read_list, shorten, write_list
from fullft_assets.store import Manifest, Store
from fullft_assets.tasks.language.assessment import ANSWERS

#: Replaces something erased within a text.
GONE = "[erased]"


ATTEMPTS = "unfinished attempts"
TRACEBACKS = "tracebacks, which may quote them"
TRAININGS = "unfinished trainings that had learned from them"


@dataclass
class ErasureReport:
    """What an erasure did; refs are `Manifest.ref`.

    Attributes:
        num_found: erased documents that some artifact held.
        missing: listed, and no document of the store has it, nor had one that was erased.
        deleted: artifacts that are made again when needed, by stage; ATTEMPTS that killed processes had left
            or that were broken; all TRACEBACKS; and TRAININGS that had learned and were not finished.
        num_in_flight: attempts without a manifest that somebody may be writing, and trainings under way that
            learned: left alone.
        trained_on: checkpoints that had learned from an erased document.
        champions: those of `trained_on` that are or were champion.
    """

    num_listed: int
    num_found: int = 0
    missing: list[str] = field(default_factory=list)
    num_before: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    num_in_flight: int = 0
    trained_on: list[str] = field(default_factory=list)
    champions: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report in words, without a single id."""
        lines = [
            (1, f"{self.num_found:,} documents erased, {self.num_listed:,} ids or groups listed"),
            (self.num_before, f"erased before {self.num_before:,} of those listed"),
            (
                len(self.missing),
                f"not found    {len(self.missing):,} of those listed (tombstones keep them out if they ever"
                " come)",
            ),
            *((1, f"rewritten    {count:,} {stage}") for stage, count in sorted(self.rewritten.items())),
            *((count, f"deleted      {count:,} {what}") for what, count in sorted(self.deleted.items())),
            (
                self.num_in_flight,
                f"left alone   {self.num_in_flight:,} unfinished attempts; once the runs have ended, erase"
                " the same list again",
            ),
            *(
                (1, f"learned from {ref}{' (champion)' if ref in self.champions else ''}")
                for ref in self.trained_on
            ),
            (
                len(self.trained_on),
                "weights cannot be rewritten: train again without these documents, release, then delete the"
                " checkpoints above",
            ),
        ]
        return [line for number, line in lines if number]


_TABLES = ("predictions.parquet", "validation.parquet")
#: A row of a page's table that is about one document.
_ABOUT = re.compile(r'<tr data-document="(.*?)">.*?</tr>', re.DOTALL)


def drop_from_reports(store: Store, case: str, erased: ErasedDocuments, report: ErasureReport) -> None:
    """Take erased documents out of the evaluation reports of a use case."""
    excerpts = {escape(shorten(text), quote=quote) for text in erased.texts for quote in (True, False)}
    excerpts |= {excerpt.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") for excerpt in excerpts}
    for manifest, folder in whole_artifacts(store, case, EVALUATION_REPORT):
        if _drop_from_report(store, manifest, folder, erased, excerpts):
            report.rewritten[manifest.stage] += 1


def _drop_from_report(
    store: Store, manifest: Manifest, folder: Path, erased: ErasedDocuments, excerpts: Collection[str]
) -> bool:
    tables = {name: pq.read_table(folder / name) for name in _TABLES if name in manifest.files}
    # The first field of a list is the id of a document.
    lists = {name: read_list(folder / name) for name in (ANSWERS, LABEL_ERRORS) if name in manifest.files}
    ids = {id_ for table in tables.values() for id_ in table["id"].to_pylist()}
    ids |= {next(iter(row.values())) for rows in lists.values() for row in rows}
    ids_gone = erased.named(ids)
    hit = pa.array(sorted(ids_gone), pa.string())
    tables_left = {
        name: table.filter(pc.invert(pc.is_in(table["id"], hit))) for name, table in tables.items()
    }
    lists_left = {
        name: [row for row in rows if next(iter(row.values())) not in ids_gone]
        for name, rows in lists.items()
    }
    pages = [name for name in manifest.files if name.endswith((".html", ".md"))]
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in pages}
    shows_text = any(excerpt in text for text in texts.values() for excerpt in excerpts)
    if not ids_gone and not shows_text:
        return False

    def without_gone(row: re.Match[str]) -> str:
        return f"<tr><td>{GONE}</td></tr>" if unescape(row[1]) in ids_gone else row[0]

    def edit(path: Path) -> Mapping[str, Any]:
        for name, table in tables_left.items():
            pq.write_table(table, path / name)
        for name, rows in lists_left.items():
            if rows != lists[name]:
                write_list(path / name, rows)
        for name, text in texts.items():
            # What a model wrote after the beginning of a document goes with it.
            text = _ABOUT.sub(without_gone, text)
            for excerpt in excerpts:
                text = text.replace(excerpt, GONE)
            (path / name).write_text(text, encoding="utf-8")
        return {}

    store.rewrite(manifest, edit)
    return True
