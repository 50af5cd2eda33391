"""What is written in place of a file's name outside of the store: a name may say who a document is about.

Messages go to Dagster's event log, to logs of runs and to alerts. There a file is `file-` and the first
digits of its path's SHA-256, with the ending of a known format. `fullft files CASE` prints the names, and
`fullft run` puts them back into the lines of the terminal.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable

from fullft_assets.documents.formats import COMPRESSIONS, ending_of, name_of_format

_ALIAS = re.compile(r"file-[0-9a-f]{8}")
_DIGITS = 8


def shown_path(path: str) -> str:
    """Return a path as text that can be written: bytes that are not UTF-8 are shown as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def alias(path: str) -> str:
    """Return what is written for a file outside of the store, such as `file-1f0c6aa2.jsonl`."""
    path = shown_path(path)
    packed = next((ending for ending in COMPRESSIONS if path.lower().endswith(ending)), "")
    ending = f"{ending_of(path)}{packed}" if name_of_format(path) else ""
    return f"file-{hashlib.sha256(path.encode()).hexdigest()[:_DIGITS]}{ending}"


def restore(text: str, paths: Callable[[], Iterable[str]]) -> str:
    """Return a message in which the aliases of these files are replaced by their names."""
    if not _ALIAS.search(text):
        return text
    for path in paths():
        if (called := alias(path)) in text:
            text = text.replace(called, shown_path(path))
    return text
