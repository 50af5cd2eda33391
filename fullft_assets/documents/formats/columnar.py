"""Parquet, read batch by batch. What `datasets` keeps as a number with a class name is read as the name."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fullft_assets.documents.formats.delivered import Delivered, Record, Unreadable, parsing
from fullft_assets.documents.formats.registered import Format, Reading

#: Rows that are in memory as Python objects at a time.
BATCH_ROWS = 1024


def _parquet_records(file: Delivered, reading: Reading) -> Iterator[tuple[int, Record]]:
    number = 0
    with (
        parsing("Parquet file"),
        pq.ParquetFile(str(file.path), page_checksum_verification=True) as table,
    ):
        schema = table.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise Unreadable("two columns have the same name")
        columns = [name for name in schema.names if reading.fields is None or name in reading.fields]
        classes = _class_names(schema)
        # Without a column there would be no rows to say what they lack.
        for batch in table.iter_batches(BATCH_ROWS, columns=columns or None, use_threads=False):
            # Offsets that point outside their buffer would be followed blindly.
            batch.validate(full=True)
            for record in batch.to_pylist():
                number += 1
                yield number, {name: _named(value, classes.get(name)) for name, value in record.items()}
            if file.head is not None and file.head.ends_with(batch.nbytes):
                return
        if number != table.metadata.num_rows:
            raise Unreadable(f"has {number:,} rows where its footer gives {table.metadata.num_rows:,}")


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        values = {
            name: feature[0] if isinstance(feature, list) else feature.get("feature", feature)
            for name, feature in features.items()
        }
        return {
            name: [str(class_name) for class_name in value["names"]]
            for name, value in values.items()
            if value.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _named(value: Any, names: list[str] | None) -> Any:
    if isinstance(value, list) and names is not None:
        return [_named(number, names) for number in value]
    if names is None or type(value) is not int:
        return value
    # -1 is what `datasets` writes for "no label".
    return names[value] if 0 <= value < len(names) else None if value == -1 else value


PARQUET = Format(_parquet_records, endings=(".parquet",))
