"""delivery: new files at a use case's source are found by listing it, and recorded in the ledger.

A look is bounded, as a sensor's must be. Of a bucket it lists some pages; the next look continues from there,
and after the end it starts again. The position only says where to look next: the ledger alone decides what is
new. Delivered files that no format reads are counted by ending, so that a check can show them.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from fullft_assets.documents import batches
from fullft_assets.documents.formats import COMPRESSIONS, ending_of, reads_any_ending
from fullft_assets.documents.names import alias, shown_path
from fullft_assets.documents.sources import Folder, S3Prefix, Source, SourceFile, open_source
from fullft_assets.documents.windows import WindowCutter, open_since
from fullft_assets.settings import DocumentsSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import CheckOutcome, Store
from fullft_assets.store.checks import CheckSpec

#: Records what is new of the files that a look found, and returns the batches.
_Record = Callable[[Sequence[SourceFile]], list[batches.Batch]]
#: Pages of 1,000 keys that one look at a bucket lists: each costs nearly 0.1 CPU seconds, and as long or
#: longer for the server.
PAGES_A_LOOK = 10


@dataclass(frozen=True)
class Look:
    """What one look at a source found."""

    cut: list[batches.Batch]
    #: New files that may still be growing.
    num_unsettled: int
    #: What was left alone, in words; empty if nothing was.
    notes: list[str]
    #: Paths that were met and left in place because their endings are not read; one of the notes counts them.
    others: list[str] = field(default_factory=list)
    #: Why other entries of a folder were skipped, by path; one of the notes counts them as well.
    skipped: Mapping[str, str] = field(default_factory=dict)
    #: The listing of a bucket has not reached its end; the next look goes on.
    goes_on: bool = False
    #: What the next window has so far, which one of the notes says as well; empty where each file is a
    #: window.
    open_window: str = ""


def source_of(use_case: UseCase, kind: batches.Kind = "batch") -> Source:
    """Return the source of a use case's documents, or of its production documents."""
    settings = use_case.settings
    path = settings.documents.path if kind == "batch" else settings.monitoring.path
    assert path is not None, "a use case without monitoring has no windows"
    return open_source(path, use_case.project_root, any_ending=reads_any_ending(settings.documents.format))


def look(
    store: Store,
    use_case: UseCase,
    kind: batches.Kind = "batch",
    *,
    whole: bool = False,
    now: float | None = None,
) -> Look:
    """Cut the new files at the source into batches and record them.

    Args:
        store: where the ledger is kept.
        use_case: whose source.
        kind: documents or production documents.
        whole: look at the complete source, however long it takes.
        now: seconds since the epoch. Default: the clock's.

    Raises:
        DataError: the source cannot be read.
    """
    now = time.time() if now is None else now
    bounds = use_case.settings.documents
    source = source_of(use_case, kind)
    window = use_case.settings.monitoring.window if kind == "window" else None
    if window is not None:
        cutter = WindowCutter(store, use_case, window, source, bounds, now=now, whole=whole)
        cut_look = _look(store, use_case.name, source, bounds, kind, cutter.record, now, whole=whole)
        return replace(
            cut_look, notes=[*cut_look.notes, *filter(None, [cutter.progress])], open_window=cutter.progress
        )
    if kind == "window":
        bounds = bounds.model_copy(update={"max_batch_files": 1})

    def record(files: Sequence[SourceFile]) -> list[batches.Batch]:
        return batches.record(store, use_case.name, files, bounds, kind, uri=source.uri)

    return _look(store, use_case.name, source, bounds, kind, record, now, whole=whole)


def last_arrival(store: Store, case: str, kind: batches.Kind, now: float) -> float:
    """Return when something new came that a look has found, in seconds since the epoch; 0 if nothing did.

    That is when the newest batch (or window) was recorded, or when the newest file arrived that waits for the
    rest of its window. What is dated in the future is not counted: it would hide that nothing comes.

    Args:
        now: seconds since the epoch.
    """
    times = [
        store.last_written(f"pointers/{case}/{kind}"),
        *(open_since(store, case) if kind == "window" else []),
    ]
    return max((at for at in times if at <= now), default=0.0)


def _look(
    store: Store,
    case: str,
    source: Source,
    bounds: DocumentsSettings,
    kind: batches.Kind,
    record: _Record,
    now: float,
    *,
    whole: bool,
) -> Look:
    after = ""
    num_waiting = 0
    notes: list[str] = []
    if isinstance(source, S3Prefix) and not whole:
        new_batches, after = _list_on(store, case, source, kind, record)
        notes = [f"listed up to {alias(after)}; the next look goes on"] if after else []
    elif isinstance(source, Folder) and not source.folder.is_dir():
        return Look([], 0, ["there is no such folder; deliver the documents there, or fix the path"])
    else:
        settled, unsettled = batches.settled(source, bounds, now)
        new_batches = record(settled)
        while whole and (more := record(settled)):
            new_batches += more
        _remember_leftovers(
            store,
            case,
            kind,
            _count_endings(source.others),
            len(settled) + len(unsettled),
        )
        if num_waiting := batches.num_new(store, case, unsettled, kind):
            notes = [
                f"{num_waiting:,} file(s) written to within the last {bounds.settle_seconds:g} s wait for the"
                " next look"
            ]
        elif not (settled or unsettled):
            notes = ["there is no document that can be read"]
    notes += left_in_place(source.others, named=False)
    notes += skipped(source.skipped, named=False)
    return Look(new_batches, num_waiting, notes, source.others, source.skipped, goes_on=bool(after))


def left_in_place(paths: Sequence[str], *, named: bool) -> list[str]:
    """Return one line that counts files by their endings, which are not read; none where there is none.

    Args:
        paths: of the files.
        named: name the first files of each ending: on a terminal, not where lines are kept.
    """
    if not paths:
        return []
    paths_by_ending: dict[str, list[str]] = {}
    for path in sorted(map(shown_path, paths)):
        paths_by_ending.setdefault(_ending(path), []).append(path)
    ranking = sorted(paths_by_ending.items(), key=lambda item: (-len(item[1]), item[0]))
    endings = [
        f"{len(names):,} {ending}"
        + (f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if named else "")
        for ending, names in ranking[:5]
    ]
    more = f" and {len(ranking) - 5:,} more endings" if len(ranking) > 5 else ""
    return [
        f"{len(paths):,} file(s) are left in place because their endings are not read:"
        f" {', '.join(endings)}{more}"
    ]


def skipped(why: Mapping[str, str], *, named: bool) -> list[str]:
    """Return one line that counts the entries of a folder that were not followed; none where there is none.

    Args:
        why: why each was not, by path.
        named: name the first ones: on a terminal, not where lines are kept.
    """
    if not why:
        return []
    entries = [f"{shown_path(path)} ({reason})" for path, reason in sorted(why.items())[:5]]
    more = f" and {len(why) - 5:,} more" if len(why) > 5 else ""
    reasons = [f"{number:,} ({reason})" for reason, number in Counter(why.values()).most_common()]
    return [
        f"{len(why):,} entries of the folder are skipped:"
        f" {'; '.join(entries) + more if named else '; '.join(reasons)}"
    ]


def _list_on(
    store: Store, case: str, source: S3Prefix, kind: batches.Kind, record: _Record
) -> tuple[list[batches.Batch], str]:
    """List the next pages of a prefix and record the new files; return the batches, and the path that the
    next look goes on after, which is empty at the end.
    """
    name = f"{case}/listing/{kind}"
    position: dict[str, Any] = store.read_pointer(name) or {}
    if position.get("place") != source.uri:
        position = {"after": ""}
    files, after = source.listed(position["after"], PAGES_A_LOOK)
    new_batches = record(files)
    # If there are more files than one look may record, these pages are listed again.
    if len(new_batches) < batches.MAX_CUTS:
        counts_left = Counter(position.get("left", {})) + _count_endings(source.others)
        num_read = position.get("num_read", 0) + len(files)
        next_position = {"place": source.uri, "after": after}
        if after:
            next_position |= {"left": counts_left, "num_read": num_read}
        else:
            _remember_leftovers(store, case, kind, counts_left, num_read)
        if next_position != position:
            store.write_pointer(name, next_position)
    return new_batches, after


FILES_ARE_READ = CheckSpec(
    "delivered_files_are_read", "The source has no files that no format reads.", blocking=True
)
#: Endings that are shown; the others are summed up.
_SHOWN_ENDINGS = 20


def _count_endings(paths: Sequence[str]) -> Counter[str]:
    return Counter(_ending(shown_path(path)) for path in paths)


def _ending(path: str) -> str:
    last = PurePosixPath(path.lower()).suffix
    ending = ending_of(path) + last if last in COMPRESSIONS else last
    # What is named as an ending; what follows the last point of other names may be any words.
    return ending if re.fullmatch(r"(\.[a-z0-9]{1,8}){1,2}", ending) else "without an ending"


def _remember_leftovers(
    store: Store, case: str, kind: batches.Kind, counts: Mapping[str, int], num_read: int
) -> None:
    counts_of_look = {"by_ending": dict(counts), "num_read": num_read}
    if store.read_pointer(f"{case}/left/{kind}") != counts_of_look:
        store.write_pointer(f"{case}/left/{kind}", counts_of_look)


def check_leftovers(store: Store, case: str) -> CheckOutcome:
    """Return whether all files delivered for training are read, by the last complete look: a warning if not,
    an error if none is read.
    """
    last_look = store.read_pointer(f"{case}/left/batch") or {"by_ending": {}, "num_read": 0}
    counts: dict[str, int] = last_look["by_ending"]
    ranking = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    counts_by_ending = dict(ranking[:_SHOWN_ENDINGS])
    if len(ranking) > _SHOWN_ENDINGS:
        counts_by_ending["other endings"] = sum(number for _, number in ranking[_SHOWN_ENDINGS:])
    num_left = sum(counts.values())
    num_read = last_look["num_read"]
    endings = ", ".join(f"{number:,} {ending}" for ending, number in list(counts_by_ending.items())[:5])
    return CheckOutcome(
        name=FILES_ARE_READ.name,
        passed=not num_left,
        # Files that were read once may have been removed since, and their batches go on.
        severity="error" if num_left and not num_read and not batches.list_batches(store, case) else "warn",
        description=(
            f"{num_left:,} of {num_left + num_read:,} files are not read: {endings}; convert or remove them"
            if num_left
            else ""
        ),
        metadata={"num_read": num_read, "num_not_read": num_left, "not_read_by_ending": counts_by_ending},
    )
