"""Windows of several files: cut in the order of arrival, by number of rows or by time.

What the next window has so far is kept beside the ledger, with the rows of each file, so that a file is
counted once, and with its arrival: when it was written, or when it was first seen where a producer's clock
was ahead of that. A window that is in the ledger stays as it is: a late file joins the next one.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

from fullft_assets.documents import batches
from fullft_assets.documents.formats import Delivered, Unreadable, is_whole_file
from fullft_assets.documents.reading import FileReader
from fullft_assets.documents.sources import Source, SourceFile
from fullft_assets.settings import DocumentsSettings, WindowSettings
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store

#: Bytes of the files whose rows one look of a sensor counts; at least one file is counted. The next look goes
#: on.
COUNTED_BYTES = 16 * 2**20
_COLUMNS = "rows arrived_ns mtime_ns bytes etag path"
_NOT_COUNTED = "-"


class _Arrival(NamedTuple):
    arrived_ns: int
    #: None: not counted, as the window ends by time.
    rows: int | None

    def line(self, file: SourceFile) -> str:
        """Return the line that records a file, which `_read` reads."""
        return f"{_NOT_COUNTED if self.rows is None else self.rows} {self.arrived_ns} {batches.line_of(file)}"


class WindowCutter:
    """Records windows of a use case, and remembers what the next one has so far.

    Args:
        store: where the ledger is kept.
        use_case: with `monitoring.window`.
        source: of its production documents.
        bounds: a window also ends where a batch would.
        now: seconds since the epoch; no file arrives later.
        whole: count the rows of every file, however long it takes.
    """

    def __init__(
        self,
        store: Store,
        use_case: UseCase,
        window: WindowSettings,
        source: Source,
        bounds: DocumentsSettings,
        *,
        now: float,
        whole: bool = False,
    ):
        self._store = store
        self._use_case = use_case
        self._window = window
        self._source = source
        self._bounds = bounds
        self._now_ns = int(now * 10**9)
        self._bytes_left = None if whole else COUNTED_BYTES
        self._pointer = _pointer_of(use_case.name)
        #: Files of the next window, in the order of arrival.
        self._open: dict[SourceFile, _Arrival] = {}
        #: Of these files, as far as they were looked at.
        self._num_rows = 0
        self._num_bytes = 0

    def record(self, files: Iterable[SourceFile]) -> list[batches.Batch]:
        """Record the windows that these files complete, and return them."""
        return batches.record(
            self._store,
            self._use_case.name,
            self._with_open(files),
            self._bounds,
            "window",
            uri=self._source.uri,
            group=self._group,
        )

    @property
    def progress(self) -> str:
        """A sentence on the files of the next window so far; empty if no file waits for a window that ends by
        time.
        """
        if self._window.rows is not None:
            num_rows = sum(arrival.rows or 0 for arrival in self._open.values())
            return f"{num_rows:,} of {self._window.rows:,} rows of the next window"
        if not self._open:
            return ""
        since = datetime.fromtimestamp(next(iter(self._open.values())).arrived_ns / 10**9, UTC)
        return (
            f"{len(self._open):,} file(s) since {since:%Y-%m-%d %H:%M UTC} are in the next window, which ends"
            f" with the first file that is {self._window.hours:g} h younger"
        )

    def _with_open(self, files: Iterable[SourceFile]) -> Iterator[SourceFile]:
        self._open = _read(self._store, self._pointer)
        yield from self._open
        yield from files

    def _group(self, files: list[SourceFile]) -> Iterator[list[SourceFile]]:
        """Yield the files of each window that ends, then remember the rest.

        Where a look records no more windows, the rest is not remembered, and the next look finds it as new.
        """
        before = self._open
        self._open = {}
        with FileReader(self._use_case.settings.documents, self._use_case.settings.examples) as reader:
            for file, arrival in self._in_order(before, files).items():
                if self._window.rows is not None and arrival.rows is None:
                    if self._bytes_left is not None and self._bytes_left <= 0:
                        break
                    if (arrival := arrival._replace(rows=self._count(reader, file))).rows is None:
                        # A feed that delivers what nobody can read would never complete a window.
                        yield [file]
                        continue
                if self._ends_before(file, arrival):
                    yield self._completed()
                self._open[file] = arrival
                self._num_bytes += file.bytes
                self._num_rows += arrival.rows or 0
                if self._window.rows is not None and self._num_rows >= self._window.rows:
                    yield self._completed()
        if self._open != before:
            lines = [arrival.line(file) for file, arrival in self._open.items()]
            self._store.write_pointer(self._pointer, {"columns": _COLUMNS, "files": lines})

    def _in_order(
        self, before: dict[SourceFile, _Arrival], files: list[SourceFile]
    ) -> dict[SourceFile, _Arrival]:
        arrivals = {
            file: _Arrival(min(file.mtime_ns, self._now_ns), None) for file in files if file not in before
        }
        order = sorted(arrivals, key=lambda file: (arrivals[file].arrived_ns, file.mtime_ns, file.path))
        paths_of_arrivals = {file.path for file in arrivals}
        current_files = set(files)
        open_files = {
            file: arrival
            for file, arrival in before.items()
            if file in current_files and file.path not in paths_of_arrivals
        }
        return open_files | {file: arrivals[file] for file in order}

    def _completed(self) -> list[SourceFile]:
        files = list(self._open)
        self._open = {}
        self._num_rows = 0
        self._num_bytes = 0
        return files

    def _ends_before(self, file: SourceFile, arrival: _Arrival) -> bool:
        first = next(iter(self._open.values()), None)
        return first is not None and (
            (
                self._window.hours is not None
                and arrival.arrived_ns - first.arrived_ns >= self._window.hours * 3600 * 10**9
            )
            or len(self._open) >= self._bounds.max_batch_files
            or self._num_bytes + file.bytes > self._bounds.max_batch_bytes
        )

    def _count(self, reader: FileReader, file: SourceFile) -> int | None:
        if self._use_case.settings.documents.format == "auto" and is_whole_file(file.path):
            return 1
        if self._bytes_left is not None:
            self._bytes_left -= file.bytes
        try:
            with self._source.local(file.path) as path:
                # Every code page has the same line ends and delimiters.
                return reader.read(
                    Delivered(path, file.path),
                    lambda records, *_: sum(1 for _ in islice(records, self._window.rows)),
                    lambda _: "latin-1",
                )[0]
        except (Unreadable, OSError):
            return None


def open_since(store: Store, case: str) -> list[float]:
    """Return when the files arrived that the next window of a use case has so far, in seconds since the
    epoch.
    """
    return [arrival.arrived_ns / 10**9 for arrival in _read(store, _pointer_of(case)).values()]


def _pointer_of(case: str) -> str:
    return f"{case}/open_window"


def _read(store: Store, pointer: str) -> dict[SourceFile, _Arrival]:
    arrivals = {}
    for line in (store.read_pointer(pointer) or {"files": []})["files"]:
        rows, arrived_ns, file_line = line.split(" ", 2)
        arrivals[batches.file_of(file_line)] = _Arrival(
            int(arrived_ns), None if rows == _NOT_COUNTED else int(rows)
        )
    return arrivals
