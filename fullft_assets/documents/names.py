"""names: which files of a delivery are about its documents, and none themselves."""

from __future__ import annotations

import re
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
