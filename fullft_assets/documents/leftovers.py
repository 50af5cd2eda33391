"""leftovers: delivered files that no format reads, counted by ending, so that a check can show them.

The last complete look at the source writes the counts: a batch consists of the other files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from fullft_assets.documents.aliases import shown_path
from fullft_assets.documents.batches import Kind, list_batches
from fullft_assets.documents.formats import COMPRESSIONS, ending_of
from fullft_assets.store import CheckOutcome, Store
from fullft_assets.store.checks import CheckSpec

CHECK = CheckSpec("delivered_files_are_read", "The source has no files that no format reads.", blocking=True)
#: Endings that are shown; the others are summed up.
_SHOWN = 20
#: What is named as an ending; what follows the last point of other names may be any words.
_ENDING = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")


def by_ending(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return paths by their ending (with that of a compression), sorted; a name that is no text is
    escaped.
    """
    named: dict[str, list[str]] = {}
    for path in sorted(map(shown_path, paths)):
        last = PurePosixPath(path.lower()).suffix
        ending = ending_of(path) + last if last in COMPRESSIONS else last
        named.setdefault(ending if _ENDING.fullmatch(ending) else "without an ending", []).append(path)
    return named


def count(paths: Sequence[str]) -> dict[str, int]:
    """Return the number of paths by ending."""
    return {ending: len(paths_of_ending) for ending, paths_of_ending in by_ending(paths).items()}


def added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Return the sum of two counts."""
    return dict(Counter(counts) + Counter(more))


def remember(
    store: Store, case: str, kind: Kind, counts: Mapping[str, int], num_read: int, num_kept_out: int
) -> None:
    """Write the counts of a complete look at the source, if they differ from those of the last look."""
    counts_of_look = {"by_ending": dict(counts), "num_read": num_read, "num_kept_out": num_kept_out}
    if store.read_pointer(_pointer(case, kind)) != counts_of_look:
        store.write_pointer(_pointer(case, kind), counts_of_look)


def check(store: Store, case: str, kind: Kind = "batch") -> CheckOutcome:
    """Return whether all delivered files are read, by the last complete look: a warning if not, an error if
    none is read.
    """
    last_look = store.read_pointer(_pointer(case, kind)) or {
        "by_ending": {},
        "num_read": 0,
        "num_kept_out": 0,
    }
    counts: dict[str, int] = last_look["by_ending"]
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = dict(most[:_SHOWN])
    if len(most) > _SHOWN:
        shown["other endings"] = sum(number for _, number in most[_SHOWN:])
    num_left, num_read = sum(counts.values()), last_look["num_read"]
    named = ", ".join(f"{number:,} {ending}" for ending, number in list(shown.items())[:5])
    return CheckOutcome(
        name=CHECK.name,
        passed=not num_left,
        # Files that were read once may have been removed since, and their batches go on.
        severity="error" if num_left and not num_read and not list_batches(store, case, kind) else "warn",
        description=(
            f"{num_left:,} of {num_left + num_read:,} files are not read: {named}; convert or remove them"
            if num_left
            else ""
        ),
        metadata={
            "num_read": num_read,
            "num_not_read": num_left,
            "not_read_by_ending": shown,
            "num_in_test_splits": last_look["num_kept_out"],
        },
    )


def _pointer(case: str, kind: Kind) -> str:
    return f"{case}/left/{kind}"
