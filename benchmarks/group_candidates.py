"""Fields that tie rows together, and fields that do not, of real texts: which of them does `fullft ingest`
suggest for examples.group?

    python -m benchmarks.group_candidates [SEEDS]

Prints a line a field: in how many samples it was suggested. The licence rules and Python's library are on
every machine of a developer; Debian's package lists where apt has fetched them.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fullft_assets.checking.sample import candidates

ROWS = 1_500
_DEBIAN = Path("/var/lib/apt/lists")
_RULE = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)
_KIND = re.compile(r"^is_license_(\w+): yes$", re.MULTILINE)


@dataclass(frozen=True)
class TextSet:
    """Rows with `text` and `label`; fields that tie them together, that follow from what does, and that mean
    nothing.
    """

    rows: list[dict[str, Any]]
    true: tuple[str, ...]
    decoys: tuple[str, ...]
    proxies: tuple[str, ...] = ()


def licences() -> TextSet:
    """Return licence rules: rules of one licence expression quote the same licence."""
    spec = importlib.util.find_spec("licensedcode")
    assert spec is not None and spec.submodule_search_locations
    rows = []
    for path in sorted(Path(spec.submodule_search_locations[0], "data", "rules").glob("*.RULE")):
        match = _RULE.match(path.read_text(encoding="utf-8"))
        if match:
            header = dict(re.findall(r"^(\w+): (.+)$", match[1], flags=re.MULTILINE))
            kind = next(iter(_KIND.findall(match[1])), "none")
            about = {
                name: header.get(name) for name in ("license_expression", "relevance", "minimum_coverage")
            }
            rows.append({"text": match[2], "label": kind, **about})
    return TextSet(rows, ("license_expression",), ("relevance", "minimum_coverage"))


def docstrings() -> TextSet:
    """Return the docstrings of Python's library: those of one module are about one thing."""
    rows = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and (text := ast.get_docstring(node))
                and len(text) > 60
            ):
                rows.append(
                    {
                        "text": text,
                        "label": type(node).__name__,
                        "module": str(path),
                        "line": node.lineno,
                        "column": node.col_offset,
                        "first_letter": node.name[:2],
                        "num_statements": len(node.body),
                    }
                )
    return TextSet(rows, ("module",), ("line",), ("first_letter", "num_statements"))


def packages() -> TextSet:
    """Return descriptions of Debian's packages: those built from one source package are about one program."""
    import pyarrow as pa

    rows = []
    for path in sorted(_DEBIAN.glob("*_dists_*main_binary-*_Packages.lz4")):
        with pa.CompressedInputStream(pa.OSFile(str(path)), "lz4") as stream:
            text = stream.read().decode("utf-8")
        for block in text.split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*(?:\n .*)*)", block, flags=re.MULTILINE))
            if "Description" in fields:
                rows.append(
                    {
                        "text": fields["Description"],
                        "label": fields.get("Section"),
                        "source": fields.get("Source", fields["Package"]).partition(" ")[0],
                        "size": fields.get("Installed-Size"),
                        "priority": fields.get("Priority"),
                        "digest": fields.get("SHA256", "")[:2],
                        "letter": fields["Package"][-2:],
                    }
                )
    return TextSet(rows, ("source",), ("priority", "digest"), ("size", "letter"))


SETS: dict[str, Callable[[], TextSet]] = {
    "licences": cache(licences),
    "docstrings": cache(docstrings),
    "packages": cache(packages),
}


def sample(found: TextSet, seed: int) -> list[dict[str, Any]]:
    """Return rows of whole groups, as a corpus with related rows has them, with fields that mean nothing."""
    rng, key = random.Random(seed), found.true[0]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in found.rows:
        groups.setdefault(row[key], []).append(row)
    names = sorted(groups, key=str)
    rng.shuffle(names)
    rows = [row for name in names for row in rng.sample(groups[name], min(8, len(groups[name])))][:ROWS]
    rng.shuffle(rows)
    return [
        {
            **row,
            "day": n // 20,
            "annotator": rng.randrange(25),
            "id": n,
            "pair": rng.randrange(len(rows) // 2),
        }
        for n, row in enumerate(rows)
    ]


def suggested(rows: list[dict[str, Any]], *, with_labels: bool = True) -> list[str]:
    """Return the fields that are suggested for the sample."""
    fields = {
        name: [None if row[name] is None else str(row[name]) for row in rows]
        for name in rows[0]
        if name not in ("text", "label")
    }
    labels = [str(row["label"]) if with_labels else "" for row in rows]
    return [found.field for found in candidates([row["text"] for row in rows], labels, fields)]


MEANINGLESS = ("day", "annotator", "id", "pair")


def main(seeds: int) -> None:
    """Print how often each field was suggested."""
    for name, read in SETS.items():
        found = read()
        if not found.rows:
            continue
        counts: Counter[str] = Counter()
        began = time.perf_counter()
        for seed in range(seeds):
            for with_labels in (True, False):
                counts.update(suggested(sample(found, seed), with_labels=with_labels))
        seconds = (time.perf_counter() - began) / (2 * seeds)
        for kind, names in (
            ("true", found.true),
            ("proxy", found.proxies),
            ("decoy", (*found.decoys, *MEANINGLESS)),
        ):
            for field in names:
                print(
                    f"{name:<11} {kind:<6} {field:<20} {counts[field]:>3} of {2 * seeds}   {seconds:.2f} s a"
                    " sample"
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
