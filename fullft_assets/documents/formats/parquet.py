"""Parquet, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fullft_assets.documents.formats import columnar
from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable
from fullft_assets.documents.formats.protocol import Format, Reading


def records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of each row, with the columns among `reading.fields`.

    Raises:
        Unreadable: the file is damaged or has fewer rows than its footer gives.
    """
    import pyarrow.parquet as pq

    number = 0
    with columnar.reading("Parquet"), pq.ParquetFile(str(file.path), page_checksum_verification=True) as table:
        names = columnar.chosen(table.schema_arrow, reading.fields)
        batches = table.iter_batches(batch_size=columnar.BATCH_ROWS, columns=names, use_threads=False)
        step = columnar.step_of(table.metadata.num_rows, reading.table_rows)
        for number, record in columnar.records(batches, table.schema_arrow, step):
            yield number, record
        if names and step == 1 and number != table.metadata.num_rows:
            raise Unreadable(f"has {number:,} rows where its footer gives {table.metadata.num_rows:,}")
        for missing in range(number + 1, table.metadata.num_rows + 1) if not names else ():
            yield missing, {}


def num_rows(path: Path) -> int:
    """Return the number of rows that the footer of a file gives."""
    import pyarrow.parquet as pq

    with columnar.reading("Parquet"):
        return pq.read_metadata(str(path)).num_rows


FORMAT = Format(records, endings=(".parquet",), num_rows=num_rows)
