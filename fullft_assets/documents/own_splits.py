"""own_splits: parts of a delivery that are named as the splits of a data set, such as `train/` and `test/`,
or train.csv and test.csv.

Of a saved `DatasetDict` the test split is kept out (`sources`). Elsewhere a name alone decides nothing: all
files are split anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from fullft_assets.documents.names import TEST_NAMES

_KINDS = {"train": "train|training", "validation": "valid|validation|val|dev", "test": TEST_NAMES}
#: The name of a folder or file: what is before the split, the split, and perhaps a number or the like
#: (`train-00000-of-00002`).
_NAME = re.compile(
    r"(?P<before>.*[_.-])?(?:"
    + "|".join(f"(?P<{kind}>{names})" for kind, names in _KINDS.items())
    + r")(?:[_.-].*)?",
    re.IGNORECASE,
)


def found_in(paths: Iterable[str]) -> dict[str, str]:
    """Return the split of each path that is in one, `train`, `validation` or `test`; empty unless there is
    `train` and another one beside it.
    """
    places: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        for place, kind in _named(path):
            places.setdefault(place, {})[path] = kind
    whole = [splits for splits in places.values() if {"train"} < set(splits.values())]
    return max(whole, key=len, default={})


def _named(path: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield (folder and beginning of the name, split) of each part of a path that is named as a split."""
    end = 0
    for part in path.split("/"):
        before, kind = _parsed(part)
        if kind:
            yield (path[:end], before), kind
        end += len(part) + 1


@lru_cache(maxsize=2**16)
def _parsed(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    return (
        ("", "") if match is None else (match["before"] or "", next(kind for kind in _KINDS if match[kind]))
    )


def mixed(splits: Mapping[str, str], paths_of_rows: Iterable[str], group: str | None, what: str) -> str:
    """Return one line that says what becomes of a delivery's own splits.

    Args:
        splits: of `found_in`.
        paths_of_rows: the file of each row.
        group: `examples.group`.
        what: what the rows are, such as `rows read`.
    """
    files, rows = Counter(splits.values()), Counter(splits.get(path) for path in paths_of_rows)
    counted = ", ".join(
        f"{kind} ({_count(files[kind], 'file')}, {_count(rows[kind], 'row')})"
        for kind in _KINDS
        if files[kind]
    )
    by = f"by `{group}`" if group else "by row"
    return (
        f"the delivery has splits of its own, {counted}, of {rows.total():,} {what}: they are mixed, and all"
        f" rows are split anew {by}; to keep one out, move its files out of the folder, or name the folder of"
        " the others in documents.path"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
