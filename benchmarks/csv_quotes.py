"""Rows that a quote which is not closed swallows: how many files are refused, and how many files of real
texts of several lines wrongly.

    python -m benchmarks.csv_quotes [FILES]

Prints a line for each shape of file. The rows are licence rules and documentation strings of Python's
library, which have lists, tables and code; both are on every machine of a developer. Of an intact file no row
should be refused, and of the others none should be lost unsaid.
"""

from __future__ import annotations

import ast
import csv
import io
import random
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fullft_assets.demos import licences
from fullft_assets.documents.formats import Delivered, Reading, Unreadable, tables
from fullft_assets.documents.formats.rows import Wanted
from fullft_assets.settings import DocumentsSettings, ExamplesSettings
from fullft_assets.settings.documents import CsvSettings

ROWS = 200
SHAPES = (
    ("text", "kind"),
    ("kind", "text"),
    ("id", "text"),
    ("id", "text", "kind"),
    ("id", "kind", "expression", "text"),
    ("text", "expression"),
)
DELIMITERS = (",", ";", "\t")
#: Rows that the quote swallows, with the one that it is in.
SPANS = (2, 3, 5, 8, 54)


def docstrings() -> Iterator[dict[str, str]]:
    """Yield rows of the documentation strings of Python's library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function"}
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
                text := ast.get_docstring(node)
            ):
                yield {
                    "id": f"{path.stem}-{node.lineno if not isinstance(node, ast.Module) else 0}",
                    "kind": kinds[type(node)],
                    "expression": path.stem,
                    "text": text,
                }


def outcome(data: str, delimiter: str, folder: Path) -> tuple[bool, int]:
    """Return whether a file is refused because rows are in one of its fields, and how many rows are
    quarantined because they may be.
    """
    settings = DocumentsSettings(path="x", csv=CsvSettings(delimiter=delimiter))
    path = folder / "a.csv"
    path.write_text(data, encoding="utf-8", newline="")

    def shares_nothing(kind: Any) -> Any:
        return kind

    wanted = Wanted.of(settings, ExamplesSettings())
    reading = Reading(wanted, None, lambda _: [], shares_nothing, settings)
    try:
        return False, sum(
            isinstance(record, str) and "seems to have rows" in record
            for _, record in tables.csv_records(Delivered(path, "a.csv"), reading)
        )
    except Unreadable as error:
        if "has whole rows in it" not in str(error):
            raise
        return True, 0


def written(rows: Sequence[dict[str, str]], shape: Sequence[str], delimiter: str) -> str:
    """Return rows as a program writes them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, shape, delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def swallowed(
    rows: Sequence[dict[str, str]], shape: Sequence[str], delimiter: str, span: int, chance: random.Random
) -> str:
    """Return rows as a person writes them, in which one text begins with a quote and a later one ends with
    one; now and then a field is missing.
    """
    rows = [
        {
            name: " ".join(value.replace(delimiter, " ").replace('"', "").split())
            for name, value in row.items()
        }
        for row in rows
    ]
    first = chance.randrange(len(rows) - span)
    rows[first]["text"] = f'"{rows[first]["text"]}'
    rows[first + span - 1]["text"] += '"'
    lines = [delimiter.join(row[name] for name in shape) for row in rows]
    if span > 4:
        lines[first + 2] = lines[first + 2].rpartition(delimiter)[0]
    return "\n".join([delimiter.join(shape), *lines, ""])


def main(num_files: int = 100) -> int:
    chance = random.Random(1)
    rules = list(licences.rules())
    sets = {"licences": rules, "licences of several lines": [row for row in rules if "\n" in row["text"]]}
    sets["documentation"] = [row for row in docstrings() if "\n" in row["text"]]
    with tempfile.TemporaryDirectory(prefix="fullft-") as name:
        folder = Path(name)
        spans = ", ".join(map(str, SPANS))
        print(
            "| texts | columns | delimiter | intact files refused | intact rows quarantined | refused +"
            f" named in files whose quote swallows {spans} rows |"
        )
        print("|---|---|---|---|---|---|")
        for title, rows in sets.items():
            for shape in SHAPES:
                for delimiter in DELIMITERS:
                    intact = [
                        outcome(written(chance.sample(rows, ROWS), shape, delimiter), delimiter, folder)
                        for _ in range(num_files)
                    ]
                    found = []
                    for span in SPANS:
                        made = [
                            swallowed(chance.sample(rows, ROWS), shape, delimiter, span, chance)
                            for _ in range(num_files)
                        ]
                        outcomes = [outcome(each, delimiter, folder) for each in made]
                        found.append(
                            f"{sum(refused for refused, _ in outcomes)} +"
                            f" {sum(not refused and number > 0 for refused, number in outcomes)}"
                        )
                    wrongly = (
                        f"{sum(refused for refused, _ in intact)} | {sum(number for _, number in intact)} of"
                        f" {num_files * ROWS:,}"
                    )
                    print(
                        f"| {title} | {', '.join(shape)} | {delimiter!r} | {wrongly} | {', '.join(found)} |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
