"""The split of labelled data that grows, against the hash of the group alone: `python -m benchmarks.split`.

Real sets whose labels range from common to rare arrive in ten batches in random orders. After each batch a
snapshot is frozen with what the ones before held out. Counted are the snapshots that the hash alone would
leave with a label lacking a side (before near-duplicates are excluded, so at least so many), and of ours the
groups that went from held out to training, the labels that have no test row although they have two groups,
the shares of the groups on each side, and the groups that were moved.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import subprocess
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

NUM_ROWS, NUM_BATCHES, NUM_SEEDS = 2_000, 10, 10
_ORDER = {"test": 0, "validation": 1, "train": 2}


@dataclass
class Found:
    """What was counted of one set, over all seeds and snapshots."""

    num_labels: int
    refused_by_hash: list[bool] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    untested: list[int] = field(default_factory=list)
    set_aside: list[int] = field(default_factory=list)
    test_share: list[float] = field(default_factory=list)
    validation_share: list[float] = field(default_factory=list)
    num_to_training: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the means over the snapshots."""
        means = {
            name: round(mean(values), 4) for name, values in vars(self).items() if isinstance(values, list)
        }
        return {
            "num_labels": self.num_labels,
            "num_snapshots": len(self.refused),
            "num_to_training": self.num_to_training,
            **means,
        }


def licences(label: str) -> list[dict[str, str]]:
    """Return the licence rules with a label of theirs: what kind of mention they are, or the first word of
    the licence's name.
    """
    from fullft_assets.demos import licences as samples

    rows = [row for row in samples.rules() if row["text"].strip()]
    return [
        {
            "text": row["text"],
            "group": row["expression"],
            "label": row["kind"] if label == "kind" else row["expression"].split("-")[0],
        }
        for row in rows
    ]


def packages() -> list[dict[str, str]]:
    """Return the descriptions of Debian's packages by their section; packages of one source are a group."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found = []
    for entry in listed.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" ")
        )
        body = " ".join(line.strip() for line in entry.splitlines() if line.startswith(" "))
        if {"Section", "Package", "Description"} <= fields.keys():
            group = fields.get("Source", fields["Package"]).split(" ")[0]
            found.append(
                {
                    "text": f"{fields['Description']} {body}",
                    "group": group,
                    "label": fields["Section"].split("/")[-1],
                }
            )
    return found


def docstrings() -> list[dict[str, str]]:
    """Return the docstrings of the standard library's functions by their package or module; those of a file
    are a group.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        name = path.relative_to(root)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                found.append({"text": text, "group": str(name), "label": name.parts[0].removesuffix(".py")})
    return found


SETS: dict[str, Callable[[], list[dict[str, str]]]] = {
    "licence rules by kind": lambda: licences("kind"),
    "licence rules by name": lambda: licences("name"),
    "Debian packages by section": packages,
    "docstrings by package": docstrings,
}


def measure(rows: Sequence[dict[str, str]], num_rows: int, num_batches: int, seeds: Sequence[int]) -> Found:
    """Let rows arrive in batches in a random order, once a seed."""
    unique = list({row["text"]: row for row in rows}.values())
    found = Found(len({row["label"] for row in unique}))
    for seed in seeds:
        _grow(random.Random(seed).sample(unique, min(num_rows, len(unique))), num_batches, seed, found)
    return found


def _grow(rows: Sequence[dict[str, str]], num_batches: int, seed: int, found: Found) -> None:
    from benchmarks.frozen import freeze
    from fullft_assets.errors import DataError
    from fullft_assets.settings import SnapshotSettings
    from fullft_assets.snapshot.ledger import EMPTY

    settings, ledger = SnapshotSettings(test_share=0.15), EMPTY
    known: dict[str, str] = {}
    tables = {f"{n:02}": _table(rows, n, num_batches, f"{n:02}") for n in range(num_batches)}
    for number in range(1, num_batches + 1):
        taken = rows[: number * len(rows) // num_batches]
        found.refused_by_hash.append(_lacks_a_side(taken, seed))
        try:
            frozen = freeze(dict(list(tables.items())[:number]), {}, settings, seed, ledger=ledger)
        except DataError:
            found.refused.append(True)
            continue
        ledger = frozen.ledger
        splits: dict[str, str] = {
            row["group"]: row["split"] for row in frozen.index.select(["group", "split"]).to_pylist()
        }
        found.num_to_training += sum(
            _ORDER[split] > _ORDER[known.get(group, split)] for group, split in splits.items()
        )
        known |= splits
        found.refused.append(False)
        found.moved.append(frozen.metadata["num_groups_moved"])
        found.untested.append(_num_untested(frozen, taken))
        found.set_aside.append(frozen.metadata["num_labels_set_aside"])
        counts = Counter(splits.values())
        found.test_share.append(counts["test"] / len(splits))
        found.validation_share.append(counts["validation"] / len(splits))


def _table(rows: Sequence[dict[str, str]], number: int, num_batches: int, name: str) -> Any:
    import pyarrow as pa

    from fullft_assets.store.hashing import text_hash

    begin, end = number * len(rows) // num_batches, (number + 1) * len(rows) // num_batches
    part = rows[begin:end]
    columns = {column: [row[column] for row in part] for column in ("text", "group", "label")}
    return pa.table(
        {
            "id": [f"{name}-{n}" for n in range(len(part))],
            "text_hash": [text_hash(row["text"]) for row in part],
            **columns,
            "source": [name] * len(part),
            "row": range(1, len(part) + 1),
            "delivered_ns": [1] * len(part),
        }
    )


def _lacks_a_side(rows: Sequence[dict[str, str]], seed: int) -> bool:
    """Return whether a label with five rows or more is missing from a split by the hash of the groups, which
    made a snapshot fail.
    """
    from fullft_assets.store.hashing import unit_hash

    sides, counts = defaultdict(set), Counter(row["label"] for row in rows)
    for row in rows:
        place = unit_hash(seed, "split", row["group"])
        sides[row["label"]].add("test" if place < 0.15 else "validation" if place < 0.25 else "train")
    return any(len(sides[label]) < 3 for label, count in counts.items() if count >= 5)


def _num_untested(frozen: Any, rows: Sequence[dict[str, str]]) -> int:
    """Return how many labels have no test row although they have two groups."""
    groups = defaultdict(set)
    for row in rows:
        groups[row["label"]].add(row["group"])
    return sum(len(groups[label]) > 1 for label in frozen.metadata["labels_untested"])


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    given = parser.parse_args(arguments)
    for name in given.sets:
        found = measure(SETS[name](), given.rows, NUM_BATCHES, range(given.seeds))
        yield json.dumps({"set": name, **found.as_json()})


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
