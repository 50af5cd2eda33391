"""Arrow files: what `datasets` saves (the stream format), and the file format with a footer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from fullft_assets.documents.formats import columnar
from fullft_assets.documents.formats.delivered import Delivered, Unreadable
from fullft_assets.documents.formats.json_lines import Record

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_MAGIC = b"ARROW1"
#: How a stream ends; one without it was cut off, perhaps exactly between two batches.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def records(file: Delivered, columns: Collection[str] | None = None) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of each row.

    Args:
        file: the Arrow file.
        columns: the columns that are read where they exist. Default: all.

    Raises:
        Unreadable: the file is damaged or cut off.
    """
    import pyarrow as pa

    is_file = _is_file_format(file)
    # Not mapped into memory: a file that shrinks meanwhile would end the process.
    with columnar.reading("Arrow"), pa.OSFile(str(file.path)) as source:
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        names = columnar.chosen(reader.schema, columns)
        yield from columnar.records(_batches(reader, names, is_file), reader.schema)
        if not is_file and source.tell() != source.size():
            raise Unreadable("not a whole Arrow file (an end mark before its end)")


def _is_file_format(file: Delivered) -> bool:
    with file.path.open("rb") as data:
        head = data.read(len(_FILE_MAGIC))
        data.seek(0, 2)
        data.seek(max(0, data.tell() - len(_END_OF_STREAM)))
        tail = data.read()
    if head != _FILE_MAGIC and tail != _END_OF_STREAM:
        raise Unreadable("not a whole Arrow file (cut off, or of another format)")
    return head == _FILE_MAGIC


def _batches(reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader, names: list[str], is_file: bool) -> Iterator[pa.RecordBatch]:
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        # Before columns are chosen: a batch whose columns differ in length is broken.
        batch.validate(full=True)
        yield batch.select(names)
