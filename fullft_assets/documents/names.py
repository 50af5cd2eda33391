"""names: which files of a delivery are about its documents, and which belong to a split of its own.

Parts of a delivery may be named as the splits of a data set, such as `train/` and `test/`, or train.csv and
test.csv. Of a saved `DatasetDict` the test split is kept out (`sources`). Elsewhere a name alone decides
nothing: all files are split anew.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

#: What a hub puts beside the data: the card, the licence, the description of the columns.
_ABOUT = re.compile(
    r"(?:readme|licen[cs]e|notice|citation|changelog)(?:[.-][a-z]{2,8})?"
    r"|dataset_infos?\.json|dataset_dict\.json",
    re.IGNORECASE,
)
_ALWAYS = {"dataset_infos.json", "dataset_dict.json"}
#: Names of splits that a model is tested on.
TEST_NAMES = "test|eval|evaluation|heldout|held_out|holdout"
_TEST_SPLITS = re.compile(rf"(?:{TEST_NAMES})(?:[_-].*)?", re.IGNORECASE)


def is_about(path: str) -> bool:
    """Return whether a path, relative to the source, is a file about a data set: its README or LICENSE at the
    top, or bookkeeping.

    In a subfolder a README is a document: there are corpora of them, which would be missing without a word.
    One too many shows, as it has no label or an odd text.
    """
    name = PurePosixPath(path).name
    return name in _ALWAYS or ("/" not in path and _ABOUT.fullmatch(name) is not None)


def is_ignored(path: str) -> bool:
    """Return whether a member of an archive is hidden, about the others, or a program's own."""
    return path.startswith((".", "__MACOSX/", "_")) or "/." in path or is_about(path)


def is_test_split(name: str) -> bool:
    """Return whether a split of a saved `DatasetDict` is one that a model is tested on."""
    return _TEST_SPLITS.fullmatch(name) is not None


_KINDS = {"train": "train|training", "validation": "valid|validation|val|dev", "test": TEST_NAMES}
#: The name of a folder or file: what is before the split, the split, and perhaps a number or the like
#: (`train-00000-of-00002`).
_NAME = re.compile(
    r"(?P<before>.*[_.-])?(?:"
    + "|".join(f"(?P<{kind}>{names})" for kind, names in _KINDS.items())
    + r")(?:[_.-].*)?",
    re.IGNORECASE,
)


def splits_of(paths: Iterable[str]) -> dict[str, str]:
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
    end = 0
    for part in path.split("/"):
        if (match := _NAME.fullmatch(part)) is not None:
            yield (path[:end], match["before"] or ""), next(kind for kind in _KINDS if match[kind])
        end += len(part) + 1


def mixed_splits(
    splits: Mapping[str, str], paths_of_rows: Iterable[str], group: str | None, what: str
) -> str:
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
