"""delivery: new files at a use case's source, found by listing or by events, are recorded in the ledger.

A look is bounded, as a sensor's must be. Of a bucket it lists some pages; the next look continues from there,
and after the end it starts again. The position only says where to look next: the ledger alone decides what is
new. Delivered files that no format reads are counted by ending, so that a check can show them.

Of an SQS queue S3's own notifications are understood, the same wrapped by SNS, and EventBridge's events. An
event only names an object: the object is looked at as it is now, so repeated, late and disordered events do
no harm.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit

from fullft_assets.documents import batches
from fullft_assets.documents.aliases import alias, shown_path
from fullft_assets.documents.batches import Batch, Kind, list_batches
from fullft_assets.documents.formats import COMPRESSIONS, ending_of, reads_any_ending
from fullft_assets.documents.sources import Folder, S3Prefix, Source, SourceFile, open_source
from fullft_assets.documents.windows import WindowCutter, open_since
from fullft_assets.errors import DataError
from fullft_assets.settings import DocumentsSettings
from fullft_assets.store import CheckOutcome, Store, digest
from fullft_assets.store.checks import CheckSpec

if TYPE_CHECKING:
    from botocore.client import BaseClient

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


def _bounds_of(use_case: UseCase, kind: Kind = "batch") -> DocumentsSettings:
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
    source, bounds = source_of(use_case, kind), _bounds_of(use_case, kind)
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
    counts, num_kept_out = _count_leftovers(source.others), len(source.kept_out)
    _remember_leftovers(store, case, kind, counts, len(settled) + len(unsettled), num_kept_out)
    waiting = batches.num_new(store, case, unsettled, kind)
    note = (
        f"{waiting:,} file(s) written to within the last {bounds.settle_seconds:g} s wait for the next look"
    )
    notes = [note] if waiting else [] if settled or unsettled else ["there is no document that can be read"]
    return _look_of(cut, waiting, notes, source)


def _look_of(cut: list[Batch], num_unsettled: int, notes: Sequence[str], source: Source) -> Look:
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
    most = sorted(_by_ending(others).items(), key=lambda item: (-len(item[1]), item[0]))
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
        counts_left = dict(Counter(position.get("left", {})) + Counter(_count_leftovers(source.others)))
        num_read, num_kept_out = (
            position.get("num_read", 0) + len(files),
            position.get("num_kept_out", 0) + len(source.kept_out),
        )
        if after:
            new |= {"left": counts_left, "num_read": num_read, "num_kept_out": num_kept_out}
        else:
            _remember_leftovers(store, case, kind, counts_left, num_read, num_kept_out)
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


FILES_ARE_READ = CheckSpec(
    "delivered_files_are_read", "The source has no files that no format reads.", blocking=True
)
#: Endings that are shown; the others are summed up.
_SHOWN_ENDINGS = 20
#: What is named as an ending; what follows the last point of other names may be any words.
_ENDING = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")


def _by_ending(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return paths by their ending (with that of a compression), sorted; a name that is no text is
    escaped.
    """
    named: dict[str, list[str]] = {}
    for path in sorted(map(shown_path, paths)):
        last = PurePosixPath(path.lower()).suffix
        ending = ending_of(path) + last if last in COMPRESSIONS else last
        named.setdefault(ending if _ENDING.fullmatch(ending) else "without an ending", []).append(path)
    return named


def _count_leftovers(paths: Sequence[str]) -> dict[str, int]:
    return {ending: len(paths_of_ending) for ending, paths_of_ending in _by_ending(paths).items()}


def _remember_leftovers(
    store: Store, case: str, kind: Kind, counts: Mapping[str, int], num_read: int, num_kept_out: int
) -> None:
    counts_of_look = {"by_ending": dict(counts), "num_read": num_read, "num_kept_out": num_kept_out}
    if store.read_pointer(_leftovers_pointer(case, kind)) != counts_of_look:
        store.write_pointer(_leftovers_pointer(case, kind), counts_of_look)


def check_leftovers(store: Store, case: str, kind: Kind = "batch") -> CheckOutcome:
    """Return whether all delivered files are read, by the last complete look: a warning if not, an error if
    none is read.
    """
    last_look = store.read_pointer(_leftovers_pointer(case, kind)) or {
        "by_ending": {},
        "num_read": 0,
        "num_kept_out": 0,
    }
    counts: dict[str, int] = last_look["by_ending"]
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = dict(most[:_SHOWN_ENDINGS])
    if len(most) > _SHOWN_ENDINGS:
        shown["other endings"] = sum(number for _, number in most[_SHOWN_ENDINGS:])
    num_left, num_read = sum(counts.values()), last_look["num_read"]
    named = ", ".join(f"{number:,} {ending}" for ending, number in list(shown.items())[:5])
    return CheckOutcome(
        name=FILES_ARE_READ.name,
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


def _leftovers_pointer(case: str, kind: Kind) -> str:
    return f"{case}/left/{kind}"


#: Most messages that one look receives: the rest stays in the queue for the next.
MAX_MESSAGES = 1_000
_PER_REQUEST = 10
#: Waiting asks all of SQS's servers; without, a short queue often looks empty.
_WAIT_SECONDS = 1


@dataclass
class _Received:
    #: Objects below the prefix that the messages name, as they are now.
    files: list[SourceFile] = field(default_factory=list)
    #: Handles of the messages that are done with once `files` are recorded.
    handles: list[str] = field(default_factory=list)
    #: Objects named outside the prefix, or with an ending that is not read.
    num_outside: int = 0
    #: Messages that are no S3 event. They stay, so that the queue's redrive policy takes them aside.
    num_unknown: int = 0


class EventQueue:
    """A queue that gets the events of one prefix; its messages are removed when `delete` is called, not
    before.
    """

    def __init__(self, url: str, prefix: S3Prefix):
        self.url, self.prefix = url, prefix
        with _queue_errors(url):
            self._client = _client(url)

    def receive(self, most: int = MAX_MESSAGES) -> _Received:
        """Receive messages until the queue seems empty or `most` are in hand, and look at the objects that
        they name.

        Raises:
            DataError: the queue is not there, may not be read or cannot be reached.
        """
        received, named = _Received(), dict[str, None]()
        for message in self._messages(most):
            urls = list(_objects(message["Body"]))
            if None in urls:
                received.num_unknown += 1
                continue
            received.handles.append(message["ReceiptHandle"])
            named |= dict.fromkeys(filter(None, urls))
        start = f"{self.prefix.uri}/"
        paths = self.prefix.documents_among(url.removeprefix(start) for url in named if url.startswith(start))
        received.num_outside = len(named) - len(paths)
        # An object that is gone by now was deleted or will come again; one that may not be read is named once
        # the prefix is listed.
        received.files = sorted(file for file in self.prefix.statuses(paths).values() if file is not None)
        return received

    def delete(self, received: _Received) -> None:
        """Remove messages for good; call it once their objects are recorded."""
        with _queue_errors(self.url):
            for start in range(0, len(received.handles), _PER_REQUEST):
                handles = received.handles[start : start + _PER_REQUEST]
                entries = [
                    {"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)
                ]
                self._client.delete_message_batch(QueueUrl=self.url, Entries=entries)

    def _messages(self, most: int) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while len(seen) < most:
            with _queue_errors(self.url):
                answer = self._client.receive_message(
                    QueueUrl=self.url,
                    MaxNumberOfMessages=min(_PER_REQUEST, most - len(seen)),
                    WaitTimeSeconds=_WAIT_SECONDS,
                )
            # A queue that shows messages again at once would be read round and round.
            new = [message for message in answer.get("Messages", ()) if message["MessageId"] not in seen]
            if not new:
                return
            seen |= {message["MessageId"] for message in new}
            yield from new


def _objects(body: str) -> Iterator[str | None]:
    try:
        event = json.loads(body)
        if isinstance(event, dict) and event.get("Type") == "Notification":
            event = json.loads(event["Message"])
        if event.get("Event") == "s3:TestEvent":  # sent once, when the notification is set up
            return
        if event.get("source") == "aws.s3":
            if event["detail-type"] == "Object Created":
                # EventBridge gives keys as they are, S3's own notifications as in a form's URL.
                yield f"s3://{event['detail']['bucket']['name']}/{event['detail']['object']['key']}"
            return
        for record in event["Records"]:
            if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
                yield f"s3://{record['s3']['bucket']['name']}/{unquote_plus(record['s3']['object']['key'])}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield None


def _client(url: str) -> BaseClient:
    import boto3

    parts = urlsplit(url)
    aws = re.fullmatch(r"(?:sqs\.)?([a-z0-9-]+)\.(?:queue\.)?amazonaws\.com(?:\.cn)?", parts.hostname or "")
    # The queue's own URL names its server: AWS_ENDPOINT_URL may name another server, for S3.
    return boto3.client(
        "sqs", endpoint_url=f"{parts.scheme}://{parts.netloc}", region_name=aws[1] if aws else None
    )


@contextmanager
def _queue_errors(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{url}: cannot be read ({why}); fix documents.queue or the role's rights") from error
