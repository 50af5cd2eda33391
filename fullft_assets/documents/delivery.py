"""delivery: new files at a use case's source, found by listing or by events, are recorded in the ledger.

A look is bounded, as a sensor's must be. Of a bucket it lists some pages; the next look continues from there,
and after the end it starts again. The position only says where to look next: the ledger alone decides what is
new.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fullft_assets.documents import batches, leftovers
from fullft_assets.documents.aliases import alias, shown_path
from fullft_assets.documents.batches import Batch, Kind
from fullft_assets.documents.events import EventQueue
from fullft_assets.documents.formats import reads_any_ending
from fullft_assets.documents.sources import Folder, S3Prefix, Source, SourceFile, open_source
from fullft_assets.documents.windows import WindowCutter, open_since
from fullft_assets.settings import DocumentsSettings
from fullft_assets.store import Store, digest

if TYPE_CHECKING:
    from fullft_assets.settings.use_case import UseCase

#: Records what is new of the files that a look found, and returns the batches.
_Record = Callable[[Sequence[SourceFile]], list[Batch]]
#: With a queue the prefix is still listed at first, and again after this time: for earlier objects, and
#: events that were lost.
LISTING_SECONDS = 24 * 3600
#: Pages of 1,000 keys that one look at a bucket lists: each costs nearly 0.1 CPU seconds, and as long or
#: longer for the server.
PAGES_A_LOOK = 5


@dataclass(frozen=True)
class Look:
    """What one look at a source found."""

    cut: list[Batch]
    #: New files that may still be growing.
    num_unsettled: int
    #: What was left alone, in words; empty if nothing was.
    notes: list[str]
    #: Paths that were met and left in place because their endings are not read; one of the notes counts them.
    others: list[str] = field(default_factory=list)
    #: Paths of test splits, which one of the notes counts as well.
    kept_out: list[str] = field(default_factory=list)
    #: Why other entries of a folder were skipped, by path; one of the notes counts them as well.
    skipped: Mapping[str, str] = field(default_factory=dict)
    #: The listing of a bucket has not reached its end; the next look goes on.
    goes_on: bool = False
    #: What the next window has so far, which one of the notes says as well; empty where each file is a
    #: window.
    open_window: str = ""


def source_of(use_case: UseCase, kind: Kind = "batch") -> Source:
    """Return the source of a use case's documents, or of its production documents."""
    settings = use_case.settings
    path = settings.documents.path if kind == "batch" else settings.monitoring.path
    assert path is not None, "a use case without monitoring has no windows"
    documents = settings.documents
    any_ending = reads_any_ending(documents.format)
    return open_source(path, use_case.project_root, any_ending=any_ending)


def bounds_of(use_case: UseCase, kind: Kind = "batch") -> DocumentsSettings:
    """Return the settings that files are cut by: each production file is a window of its own, unless
    `monitoring.window` says otherwise.
    """
    settings = use_case.settings.documents
    if kind == "batch" or use_case.settings.monitoring.window is not None:
        return settings
    return settings.model_copy(update={"max_batch_files": 1})


def look(
    store: Store, use_case: UseCase, kind: Kind = "batch", *, whole: bool = False, now: float | None = None
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
    source, bounds = source_of(use_case, kind), bounds_of(use_case, kind)
    window = use_case.settings.monitoring.window if kind == "window" else None
    if window is not None:
        cutter = WindowCutter(store, use_case, window, source, bounds, now=now, whole=whole)
        cut_look = _look(store, use_case.name, source, bounds, kind, cutter.record, now, whole=whole)
        return replace(cut_look, notes=[*cut_look.notes, *cutter.notes], open_window=cutter.progress)

    def record(files: Sequence[SourceFile]) -> list[Batch]:
        return batches.record(store, use_case.name, files, bounds, kind, uri=source.uri)

    return _look(store, use_case.name, source, bounds, kind, record, now, whole=whole)


def last_arrival(store: Store, case: str, kind: Kind, now: float) -> float:
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
    kind: Kind,
    record: _Record,
    now: float,
    *,
    whole: bool,
) -> Look:
    """Return a look that gives the files that it finds to `record`."""
    if isinstance(source, S3Prefix) and not whole:
        if kind == "batch" and bounds.queue is not None:
            return _look_at_events(store, case, source, bounds, record, now)
        cut, notes = _list_on(store, case, source, bounds, kind, record, now)
        return replace(_look_of(cut, 0, notes, source), goes_on=bool(notes))
    if isinstance(source, Folder) and not source.folder.is_dir():
        return Look([], 0, ["there is no such folder; deliver the documents there, or fix the path"])
    settled, unsettled = batches.settled(source, bounds, now)
    cut = record(settled)
    while whole and (more := record(settled)):
        cut += more
    counts, num_kept_out = leftovers.count(source.others), len(source.kept_out)
    leftovers.remember(store, case, kind, counts, len(settled) + len(unsettled), num_kept_out)
    waiting = batches.num_new(store, case, unsettled, kind)
    note = (
        f"{waiting:,} file(s) written to within the last {bounds.settle_seconds:g} s wait for the next look"
    )
    notes = [note] if waiting else [] if settled or unsettled else ["there is no document that can be read"]
    return _look_of(cut, waiting, notes, source)


def _look_of(cut: list[Batch], num_unsettled: int, notes: Sequence[str], source: Source) -> Look:
    """Return a look with what its last listing of the source left alone."""
    notes_of_listing = (
        *kept_out(source.kept_out, named=False),
        *left_in_place(source.others, named=False),
        *skipped(source.skipped, named=False),
    )
    return Look(
        cut, num_unsettled, [*notes, *notes_of_listing], source.others, source.kept_out, source.skipped
    )


def left_in_place(others: Sequence[str], *, named: bool) -> list[str]:
    """Return one line that counts files by their endings, which are not read; none where there is none.

    Args:
        others: paths.
        named: name the first files of each ending: on a terminal, not where lines are kept.
    """
    most = sorted(leftovers.by_ending(others).items(), key=lambda item: (-len(item[1]), item[0]))
    shown = [
        f"{len(paths):,} {ending}"
        + (f" ({', '.join(paths[:2])}{', ...' if len(paths) > 2 else ''})" if named else "")
        for ending, paths in most[:5]
    ]
    more = f" and {len(most) - 5:,} more endings" if len(most) > 5 else ""
    return (
        [
            f"{len(others):,} file(s) are left in place because their endings are not read:"
            f" {', '.join(shown)}{more}"
        ]
        if others
        else []
    )


def kept_out(paths: Sequence[str], *, named: bool) -> list[str]:
    """Return one line that counts the files of test splits; none where there is none. `named`: with the first
    one, on a terminal.
    """
    first = f" ({shown_path(paths[0])})" if named and paths else ""
    return [f"{len(paths):,} file(s) of test splits are kept out of training{first}"] if paths else []


def skipped(why: Mapping[str, str], *, named: bool) -> list[str]:
    """Return one line that counts the entries of a folder that were not followed; none where there is none.

    Args:
        why: why each was not, by path.
        named: name the first ones: on a terminal, not where lines are kept.
    """
    if not why:
        return []
    shown = [f"{shown_path(path)} ({reason})" for path, reason in sorted(why.items())[:5]]
    more = f" and {len(why) - 5:,} more" if len(why) > 5 else ""
    counted = [f"{number:,} ({reason})" for reason, number in Counter(why.values()).most_common()]
    return [
        f"{len(why):,} entries of the folder are skipped:"
        f" {'; '.join(shown) + more if named else '; '.join(counted)}"
    ]


def _list_on(
    store: Store,
    case: str,
    source: S3Prefix,
    bounds: DocumentsSettings,
    kind: Kind,
    record: _Record,
    now: float,
    *,
    every: float = 0.0,
) -> tuple[list[Batch], list[str]]:
    """List the next pages of a prefix and record the new files; return the batches, and notes on how far the
    listing is.

    Where it has reached the end, it begins again once `every` seconds have passed.
    """
    name, place = f"{case}/listing/{kind}", digest([source.uri, bounds.queue])
    position = store.read_pointer(name)
    if position is None or position["place"] != place:
        position = {"place": place, "after": "", "ended_at": None}
    if not position["after"] and position["ended_at"] is not None and now - position["ended_at"] < every:
        return [], []
    files, after = source.listed(position["after"], PAGES_A_LOOK)
    cut = record(files)
    new = {
        "place": place,
        "after": after,
        "ended_at": (position["ended_at"] if after else now) if every else None,
    }
    # If there are more files than one look may record, these pages are listed again.
    if len(cut) < batches.MAX_CUTS:
        counts_left = leftovers.added(position.get("left", {}), leftovers.count(source.others))
        num_read, num_kept_out = (
            position.get("num_read", 0) + len(files),
            position.get("num_kept_out", 0) + len(source.kept_out),
        )
        if after:
            new |= {"left": counts_left, "num_read": num_read, "num_kept_out": num_kept_out}
        else:
            leftovers.remember(store, case, kind, counts_left, num_read, num_kept_out)
        if new != position:
            store.write_pointer(name, new)
    return cut, [f"listed up to {alias(after)}; the next look goes on"] if after else []


def _look_at_events(
    store: Store,
    case: str,
    source: S3Prefix,
    bounds: DocumentsSettings,
    record: _Record,
    now: float,
) -> Look:
    queue = EventQueue(bounds.queue or "", source)
    # An object that arrives behind the listing has an event, which this look or a later one receives.
    cut, listed = _list_on(store, case, source, bounds, "batch", record, now, every=LISTING_SECONDS)
    received = queue.receive()
    while recorded := record(received.files):
        cut += recorded
    # Messages are deleted once their objects are in the ledger; after a crash in between they come again and
    # are known.
    queue.delete(received)
    notes = {
        "object(s) named by events are outside of it or have another ending": received.num_outside,
        "message(s) of the queue are no S3 events and stay there": received.num_unknown,
    }
    return _look_of(
        cut, 0, [*(f"{number:,} {what}" for what, number in notes.items() if number), *listed], source
    )
