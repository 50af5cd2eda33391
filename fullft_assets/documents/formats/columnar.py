"""Arrow (the stream that `datasets` saves, and files with a footer) and Parquet, read batch by batch.

What `datasets` keeps as a number with a class name is read as the name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable, parsing
from fullft_assets.documents.formats.registered import Format, Reading

#: Rows that are in memory as Python objects at a time.
BATCH_ROWS = 1024
#: A sample of a table decodes so many bytes in all.
SAMPLED_BYTES = 64 * 2**20


def _chosen(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    if len(set(schema.names)) != len(schema.names):
        raise Unreadable("two columns have the same name")
    return [name for name in schema.names if columns is None or name in columns]


def _step_of(num_rows: int, table_rows: int | None) -> int:
    return 1 if table_rows is None else max(1, math.ceil(num_rows / table_rows))


def _within(batches: Iterable[pa.RecordBatch], limit: float) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        limit -= batch.nbytes
        if limit <= 0:
            return


def records(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, step: int = 1, before: int = 0
) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of each row of the batches, or of each `step`-th one.

    Args:
        before: rows of the table before these batches.
    """
    classes = _class_names(schema)
    for batch in batches:
        # Offsets that point outside their buffer would be followed blindly.
        batch.validate(full=True)
        for start in range(0, len(batch), BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            chosen_rows = range(-before % step, len(part), step)
            if not chosen_rows:  # pyarrow takes no empty list of rows
                before += len(part)
                continue
            for at, record in zip(
                chosen_rows, (part if step == 1 else part.take(list(chosen_rows))).to_pylist(), strict=True
            ):
                for field in classes:
                    if field in record:
                        record[field] = _named(record[field], classes[field])
                yield before + at + 1, record
            before += len(part)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    names_of_columns = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, list | dict) and not (
            isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        ):
            feature = (
                feature[0]
                if isinstance(feature, list) and len(feature) == 1
                else dict(feature).get("feature")
                if isinstance(feature, dict)
                else None
            )
        if isinstance(feature, dict) and isinstance(feature.get("names"), list):
            names_of_columns[name] = [str(known) for known in feature["names"]]
    return names_of_columns


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if type(value) is not int:
        return value
    # -1 is what `datasets` writes for "no label".
    return names[value] if 0 <= value < len(names) else None if value == -1 else value


_FILE_MAGIC = b"ARROW1"
#: How a stream ends; one without it was cut off, perhaps exactly between two batches.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _arrow_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:

    is_file = _is_file_format(file.path)
    # Not mapped into memory: a file that shrinks meanwhile would end the process.
    with parsing("Arrow file"), pa.OSFile(str(file.path)) as source:
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        names = _chosen(reader.schema, reading.fields)
        batches = _with_columns(_batches(reader), names)
        if reading.table_rows is not None:
            share = min(1.0, SAMPLED_BYTES / max(1, source.size()))
            step = _step_of(int(share * _num_arrow_rows(file.path)), reading.table_rows)
            limited = _within(batches, SAMPLED_BYTES)
            yield from records(limited, reader.schema, step)
            return
        yield from records(batches, reader.schema)
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


def _num_arrow_rows(path: Path) -> int:

    is_file = _is_file_format(path)
    with parsing("Arrow file"), pa.memory_map(str(path)) as source:
        return sum(
            batch.num_rows
            for batch in _batches(pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source))
        )


def _batches(reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:

    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _with_columns(batches: Iterator[pa.RecordBatch], names: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        # Before columns are chosen: a batch whose columns differ in length is broken.
        batch.validate(full=True)
        yield batch.select(names)


ARROW = Format(_arrow_records, endings=(".arrow",), num_rows=_num_arrow_rows)


#: Row groups that a sample of a table is read from.
_SAMPLED_GROUPS = 8


def _parquet_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:

    number = 0
    with (
        parsing("Parquet file"),
        pq.ParquetFile(str(file.path), page_checksum_verification=True) as table,
    ):
        names = _chosen(table.schema_arrow, reading.fields)
        if reading.table_rows is not None and names:
            yield from _sampled(table, names, reading.table_rows)
            return
        batches = table.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False)
        for number, record in records(batches, table.schema_arrow):
            yield number, record
        if names and number != table.metadata.num_rows:
            raise Unreadable(f"has {number:,} rows where its footer gives {table.metadata.num_rows:,}")
        for missing in range(number + 1, table.metadata.num_rows + 1) if not names else ():
            yield missing, {}


def _sampled(table: pq.ParquetFile, names: list[str], table_rows: int) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of about `table_rows` rows, from evenly spaced row groups."""
    groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    count = min(len(groups), _SAMPLED_GROUPS)
    limit = SAMPLED_BYTES / max(1, count)
    numbers = [len(groups) * number // count for number in range(count)]
    sizes = [
        groups[number].num_rows * min(1.0, limit / max(1, groups[number].total_byte_size))
        for number in numbers
    ]
    step = _step_of(math.ceil(sum(sizes)), table_rows)
    for number in numbers:
        before = sum(group.num_rows for group in groups[:number])
        batches = table.iter_batches(BATCH_ROWS, row_groups=[number], columns=names, use_threads=False)
        yield from records(_within(batches, limit), table.schema_arrow, step, before)


def _num_parquet_rows(path: Path) -> int:

    with parsing("Parquet file"):
        return pq.read_metadata(str(path)).num_rows


PARQUET = Format(_parquet_records, endings=(".parquet",), num_rows=_num_parquet_rows)
