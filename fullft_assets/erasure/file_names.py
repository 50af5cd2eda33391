"""Names of files whose documents were all erased, taken out of manifests: a file may be named after a
person.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

#: Replaces something erased within a text.
GONE = "[erased]"


def scrub(value: Any, paths: Collection[str]) -> Any:
    """Return a JSON value without these paths: keys go with their values, mentions within texts are
    replaced.
    """
    if not paths:
        return value
    longest_first = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
    # As places are written: behind white space, a slash or a quotation mark, before `:row`, white space or a
    # stop.
    return _scrub(value, set(paths), re.compile(rf"(?<![^\s/`'\"(,;])(?:{longest_first})(?![^\s:`'\"),;])"))


def _scrub(value: Any, paths: set[str], mention: re.Pattern[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _scrub(inner, paths, mention) for key, inner in value.items() if key not in paths}
    if isinstance(value, list | tuple):
        return [_scrub(inner, paths, mention) for inner in value]
    return mention.sub(GONE, value) if isinstance(value, str) else value
