"""What the names of delivered files say, and what is written in place of them outside of the store.

Parts of a delivery may be named as the splits of a data set, such as `train/` and `test/`, or train.csv and
test.csv. A name alone decides nothing: all files are split anew.

A name may say who a document is about. Messages go to Dagster's event log, to logs of runs and to alerts.
There a file is `file-` and the first digits of its path's SHA-256, with the ending of a known format. `fullft
files CASE` prints the names, and `fullft run` puts them back into the lines of the terminal.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from fullft_assets.documents.formats import COMPRESSIONS, ending_of, name_of_format

_DIGITS = 8


def shown_path(path: str) -> str:
    """Return a path as text that can be written: bytes that are not UTF-8 are shown as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def alias(path: str) -> str:
    """Return the name that a file has outside of the store, such as `file-1f0c6aa2.jsonl`."""
    path = shown_path(path)
    compression = next((ending for ending in COMPRESSIONS if path.lower().endswith(ending)), "")
    ending = f"{ending_of(path)}{compression}" if name_of_format(path) else ""
    return f"file-{hashlib.sha256(path.encode()).hexdigest()[:_DIGITS]}{ending}"


def restore(text: str, paths: Callable[[], Iterable[str]]) -> str:
    """Return a message in which the aliases of these files are replaced by their names."""
    if not re.search(r"file-[0-9a-f]{8}", text):
        return text
    for path in paths():
        text = text.replace(alias(path), shown_path(path))
    return text


#: What a hub puts beside the data: the card, the licence, the description of the columns.
_ABOUT = re.compile(
    r"(?:readme|licen[cs]e|notice|citation|changelog)(?:[.-][a-z]{2,8})?"
    r"|dataset_infos?\.json|dataset_dict\.json",
    re.IGNORECASE,
)
#: What a labelling job of Ground Truth writes beside its output manifest: answers of single workers, and
#: manifests on the way.
_OF_A_JOB = re.compile(
    r"(?:^|/)(?:annotations/(?:consolidated-annotation|intermediate|worker-response)|manifests/intermediate)/"
)


def is_about(path: str) -> bool:
    """Return whether a path, relative to the source, is a file about a data set: its README or LICENSE at the
    top, bookkeeping, or what a labelling job writes beside its output.

    In a subfolder a README is a document: there are corpora of them, which would be missing without a word.
    One too many shows, as it has no label or an odd text.
    """
    name = PurePosixPath(path).name
    if "/" not in path:
        return _ABOUT.fullmatch(name) is not None
    return name in {"dataset_infos.json", "dataset_dict.json"} or _OF_A_JOB.search(path) is not None


_KINDS = {
    "train": "train|training",
    "validation": "valid|validation|val|dev",
    "test": "test|eval|evaluation|heldout|held_out|holdout",
}
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
    splits_by_series: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        for series, kind in _series_of(path):
            splits_by_series.setdefault(series, {})[path] = kind
    return max(
        [splits for splits in splits_by_series.values() if {"train"} < set(splits.values())],
        key=len,
        default={},
    )


def _series_of(path: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield each part of a path that names a split: its series (the folder, and what is before the split in
    the name), and the split.
    """
    end = 0
    for part in path.split("/"):
        if (match := _NAME.fullmatch(part)) is not None:
            yield (path[:end], match["before"] or ""), next(kind for kind in _KINDS if match[kind])
        end += len(part) + 1


def mixed_splits(splits: Mapping[str, str], paths_of_rows: Iterable[str], group: str | None) -> str:
    """Return one line that says what becomes of a delivery's own splits.

    Args:
        splits: of `splits_of`.
        paths_of_rows: the file of each row that the snapshot keeps.
        group: `examples.group`.
    """
    num_files = Counter(splits.values())
    num_rows = Counter(splits.get(path) for path in paths_of_rows)
    counts = ", ".join(
        f"{kind} ({_count(num_files[kind], 'file')}, {_count(num_rows[kind], 'row')})"
        for kind in _KINDS
        if num_files[kind]
    )
    by = f"by `{group}`" if group else "by row"
    return (
        f"the delivery has splits of its own, {counts}, of {num_rows.total():,} rows kept: they are mixed,"
        f" and all rows are split anew {by}; to keep one out, move its files out of the folder, or name the"
        " folder of the others in documents.path"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
