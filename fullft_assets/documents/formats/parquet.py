"""Parquet, read batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fullft_assets.documents.formats import columnar
from fullft_assets.documents.formats.delivered import Delivered, Unreadable
from fullft_assets.documents.formats.json_lines import Record


def records(file: Delivered, columns: Collection[str] | None = None) -> Iterator[tuple[int, Record]]:
    """Yield (row number, record) of each row.

    Args:
        file: the Parquet file.
        columns: the columns that are read where they exist. Default: all.

    Raises:
        Unreadable: the file is damaged or holds fewer rows than it says.
    """
    import pyarrow.parquet as pq

    number = 0
    with columnar.reading("Parquet"), pq.ParquetFile(str(file.path), page_checksum_verification=True) as table:
        names = columnar.chosen(table.schema_arrow, columns)
        batches = table.iter_batches(batch_size=columnar.BATCH_ROWS, columns=names, use_threads=False)
        for number, record in columnar.records(batches, table.schema_arrow):
            yield number, record
        if names and number != table.metadata.num_rows:
            raise Unreadable(f"has {number:,} rows where its footer says {table.metadata.num_rows:,}")
        for missing in range(number + 1, table.metadata.num_rows + 1) if not names else ():
            yield missing, {}
