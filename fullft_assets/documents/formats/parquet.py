"""Parquet, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fullft_assets.documents.formats import columnar
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.protocol import Format, Reading

if TYPE_CHECKING:
    import pyarrow.parquet as pq


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
            yield from columnar.sampled(_row_groups(table, names), reading.table_rows, table.schema_arrow)
            return
        batches = table.iter_batches(batch_size=columnar.BATCH_ROWS, columns=names, use_threads=False)
        for number, record in columnar.records(batches, table.schema_arrow):
            yield number, record
        if names and number != table.metadata.num_rows:
            raise Unreadable(f"has {number:,} rows where its footer gives {table.metadata.num_rows:,}")
        for missing in range(number + 1, table.metadata.num_rows + 1) if not names else ():
            yield missing, {}


def _row_groups(table: pq.ParquetFile, names: list[str]) -> list[columnar.Part]:
    parts, before = [], 0
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        read = partial(
            table.iter_batches, columnar.BATCH_ROWS, row_groups=[number], columns=names, use_threads=False
        )
        parts.append(columnar.Part(before, group.num_rows, group.total_byte_size, read))
        before += group.num_rows
    return parts


def num_rows(path: Path) -> int:
    """Return the number of rows that the footer of a file gives."""
    import pyarrow.parquet as pq

    with columnar.reading("Parquet"):
        return pq.read_metadata(str(path)).num_rows


FORMAT = Format(records, endings=(".parquet",), num_rows=num_rows)
