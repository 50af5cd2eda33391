"""How often the alarm of labels that are given away is right: `python -m benchmarks.leakage [--labels N]`, a
line of JSON each.

On real sets, whose labels are learned from their texts, it should find nothing; where a stamp is added to the
texts of one label it should name that label. Rows of a quarter of the
groups are test rows, and training rows near to them are excluded, as a snapshot does.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import public_sets, split
from fullft_assets.evaluation.leakage import LabelledTexts, find_leakage
from fullft_assets.snapshot.near_text.pairs import near_duplicates

ROWS, STAMP = 3_000, " [zqx 17]"
Row = Mapping[str, str]


def diagnoses() -> list[Row]:
    """Return the descriptions of ICD-10's codes by their chapter; a code with its subcodes is a group."""
    with tempfile.TemporaryDirectory() as folder:
        public_sets.diagnoses(Path(folder))
        rows = [
            json.loads(line)
            for line in (Path(folder) / "codes.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    return [{"text": row["text"], "label": row["chapter"], "group": row["id"].split(".")[0]} for row in rows]


def genres() -> list[Row]:
    """Return the texts of the Brown corpus by their genre."""
    with tempfile.TemporaryDirectory() as folder:
        public_sets.genres(Path(folder))
        rows = [
            json.loads(line)
            for line in (Path(folder) / "brown.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    return [{"text": row["text"], "label": row["genre"], "group": row["id"]} for row in rows]


SETS = {
    "licence rules by kind": lambda: split.licences("kind"),
    "diagnoses by chapter": diagnoses,
    "texts by genre": genres,
}


def sides(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return training and test rows of a sample."""
    unique = list({row["text"]: row for row in rows if row["text"].strip()}.values())
    rows = random.Random(0).sample(unique, min(ROWS, len(unique)))
    groups, rng = sorted({row["group"] for row in rows}), np.random.default_rng(0)
    held_out = {group for group in groups if rng.random() < 0.25}
    test, train = ([row for row in rows if (row["group"] in held_out) == side] for side in (True, False))
    near = near_duplicates([row["text"] for row in test], [row["text"] for row in train])
    return [row for place, row in enumerate(train) if place not in near], test


def labelled(rows: Sequence[Row], names: Sequence[str]) -> LabelledTexts:
    """Return rows as the search takes them."""
    labels = np.array([[row["label"] == name for name in names] for row in rows])
    return LabelledTexts([row["text"] for row in rows], labels, [row["group"] for row in rows])


def stamped(rows: Sequence[Row], label: str) -> list[Row]:
    """Return rows with a stamp on a label's texts."""
    return [{**row, "text": row["text"] + STAMP} if row["label"] == label else row for row in rows]


def measure(name: str, most_labels: int) -> Iterator[dict[str, object]]:
    """Yield what is found on a set as it is, and on its copies with a stamp."""
    train, test = sides(SETS[name]())
    names = sorted({row["label"] for row in (*train, *test)})
    found = find_leakage(labelled(train, names), labelled(test, names), names, 0)
    yield {
        "set": name,
        "stamped": 0,
        "labels": found.num_labels,
        "found": len(found.markers),
        "share_repeated": round(found.share_repeated, 3),
        "markers": [f"{marker.label}: {marker.rule}" for marker in found.markers],
    }
    counts = {label: len({row["group"] for row in test if row["label"] == label}) for label in names}
    chosen = [label for label in sorted(names, key=lambda label: -counts[label]) if counts[label] >= 8][
        :most_labels
    ]
    hits = 0
    for label in chosen:
        ours, theirs = (labelled(stamped(rows, label), names) for rows in (train, test))
        hits += label in {marker.label for marker in find_leakage(ours, theirs, names, 0).markers}
    yield {"set": name, "stamped": 1, "labels": len(chosen), "found": hits}


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield lines of JSON for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--labels", type=int, default=4, help="labels of each set that get a stamp, those of most groups"
    )
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    given = parser.parse_args(arguments)
    for name in given.sets:
        for row in measure(name, given.labels):
            yield json.dumps(row)


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
