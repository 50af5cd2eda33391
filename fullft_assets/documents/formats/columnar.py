"""Record batches of Arrow -> records; what `datasets` keeps as a number with a class name is read as the
name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fullft_assets.documents.formats.delivered import Record, Unreadable

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are in memory as Python objects at a time.
BATCH_ROWS = 1024
#: A sample of a table decodes so many bytes in all.
SAMPLED_BYTES = 64 * 2**20


def chosen(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    """Return the columns to read: the wanted ones that are there, or all.

    Raises:
        Unreadable: two columns have the same name.
    """
    if len(set(schema.names)) != len(schema.names):
        raise Unreadable("two columns have the same name")
    return [name for name in schema.names if columns is None or name in columns]


def step_of(num_rows: int, table_rows: int | None) -> int:
    """Return the distance between the rows that are read of a table, so that about `table_rows` are."""
    return 1 if table_rows is None else max(1, math.ceil(num_rows / table_rows))


def within(batches: Iterable[pa.RecordBatch], limit: float) -> Iterator[pa.RecordBatch]:
    """Yield batches until their total size reaches `limit` bytes."""
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
    classes = class_names(schema)
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


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """Turn whatever pyarrow raises on a broken file into `Unreadable`; its message may contain the text and
    is dropped.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise Unreadable(f"not a complete {kind} file ({type(error).__name__})") from error
    except OSError as error:
        if error.strerror:
            raise
        raise Unreadable(f"not a complete {kind} file (damaged or truncated)") from error


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the class names by column that `datasets` writes into the schema's metadata."""
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
