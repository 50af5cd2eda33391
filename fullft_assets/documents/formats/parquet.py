"""Parquet, read batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.documents.formats import columnar
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.protocol import Format, Reading

if TYPE_CHECKING:
    import pyarrow.parquet as pq


#: Row groups that a sample of a table is read from.
_SAMPLED_GROUPS = 8


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of each row, with the columns among `reading.fields`.

    Raises:
        Unreadable: the file is damaged or has fewer rows than its footer gives.
    """
    import pyarrow.parquet as pq

    number = 0
    with (
        columnar.reading("Parquet"),
        pq.ParquetFile(str(file.path), page_checksum_verification=True) as table,
    ):
        names = columnar.chosen(table.schema_arrow, reading.fields)
        if reading.table_rows is not None and names:
            yield from _sampled(table, names, reading.table_rows)
            return
        batches = table.iter_batches(batch_size=columnar.BATCH_ROWS, columns=names, use_threads=False)
        for number, record in columnar.records(batches, table.schema_arrow):
            yield number, record
        if names and number != table.metadata.num_rows:
            raise Unreadable(f"has {number:,} rows where its footer gives {table.metadata.num_rows:,}")
        for missing in range(number + 1, table.metadata.num_rows + 1) if not names else ():
            yield missing, {}


def _sampled(table: pq.ParquetFile, names: list[str], table_rows: int) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of about `table_rows` rows, from evenly spaced row groups."""
    groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    count = min(len(groups), _SAMPLED_GROUPS)
    limit = columnar.SAMPLED_BYTES / max(1, count)
    numbers = [len(groups) * number // count for number in range(count)]
    sizes = [
        groups[number].num_rows * min(1.0, limit / max(1, groups[number].total_byte_size))
        for number in numbers
    ]
    step = columnar.step_of(math.ceil(sum(sizes)), table_rows)
    for number in numbers:
        before = sum(group.num_rows for group in groups[:number])
        batches = table.iter_batches(
            columnar.BATCH_ROWS, row_groups=[number], columns=names, use_threads=False
        )
        yield from columnar.records(columnar.within(batches, limit), table.schema_arrow, step, before)


def num_rows(path: Path) -> int:
    """Return the number of rows that the footer of a file gives."""
    import pyarrow.parquet as pq

    with columnar.reading("Parquet"):
        return pq.read_metadata(str(path)).num_rows


FORMAT = Format(records, endings=(".parquet",), num_rows=num_rows)
