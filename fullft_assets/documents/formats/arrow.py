"""Arrow files: what `datasets` saves (the stream format), and the file format with a footer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.documents.formats import columnar
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.protocol import Format, Reading

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_MAGIC = b"ARROW1"
#: How a stream ends; one without it was cut off, perhaps exactly between two batches.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of each row, with the columns among `reading.fields`.

    Raises:
        Unreadable: the file is damaged or cut off.
    """
    import pyarrow as pa

    is_file = _is_file_format(file.path)
    # Not mapped into memory: a file that shrinks meanwhile would end the process.
    with columnar.reading("Arrow"), pa.OSFile(str(file.path)) as source:
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        names = columnar.chosen(reader.schema, reading.fields)
        batches = _chosen(_batches(reader), names)
        if reading.table_rows is not None:
            share = min(1.0, columnar.SAMPLED_BYTES / max(1, source.size()))
            step = columnar.step_of(int(share * num_rows(file.path)), reading.table_rows)
            limited = columnar.within(batches, columnar.SAMPLED_BYTES)
            yield from columnar.records(limited, reader.schema, step)
            return
        yield from columnar.records(batches, reader.schema)
        if not is_file and source.tell() != source.size():
            raise Unreadable("not a complete Arrow file (an end mark before its end)")


def _is_file_format(path: Path) -> bool:
    with path.open("rb") as data:
        head = data.read(len(_FILE_MAGIC))
        data.seek(0, 2)
        data.seek(max(0, data.tell() - len(_END_OF_STREAM)))
        tail = data.read()
    if head != _FILE_MAGIC and tail != _END_OF_STREAM:
        raise Unreadable("not a complete Arrow file (cut off, or of another format)")
    return head == _FILE_MAGIC


def num_rows(path: Path) -> int:
    """Return the number of rows of a file; only the sizes of its batches are looked at."""
    import pyarrow as pa

    is_file = _is_file_format(path)
    with columnar.reading("Arrow"), pa.memory_map(str(path)) as source:
        return sum(
            batch.num_rows
            for batch in _batches(pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source))
        )


def _batches(reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _chosen(batches: Iterator[pa.RecordBatch], names: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        # Before columns are chosen: a batch whose columns differ in length is broken.
        batch.validate(full=True)
        yield batch.select(names)


FORMAT = Format(records, endings=(".arrow",), num_rows=num_rows)
