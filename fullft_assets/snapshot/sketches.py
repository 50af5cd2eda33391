"""What each batch's texts are compared by: sketches of them, made once a batch and read ever after.

With them the snapshot of old batches and a new one costs what the new one's texts cost, and joins of
integers: texts of old batches are read only where they are a candidate for a pair.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from fullft_assets.examples import ExamplesMetadata
from fullft_assets.snapshot.frozen_batches import content_of
from fullft_assets.snapshot.metadata import NearDuplicateIndexMetadata
from fullft_assets.snapshot.near_text.pairs import sketch
from fullft_assets.snapshot.screening import EvaluationTexts, Screen
from fullft_assets.store import Draft, Manifest, Outcome, Store
from fullft_assets.store.hashing import unit_hash

VERSION = "6"
STAGE = "near_duplicate_index"
_FILE = "sketches.arrow"


def build(rows: pa.Table, seed: int, screen: Screen | None = None) -> pa.Table:
    """Return the sketches of rows with `text`, `text_hash` and `group`, their `place` in the split, and
    whether each `overlaps` a screen's texts.
    """
    overlaps = np.zeros(len(rows), bool) if screen is None else screen.overlapping(rows["text"])
    table = sketch(rows["text"]).append_column("place", pa.array(_places(rows, seed)))
    return table.append_column("overlaps", pa.array(overlaps))


def _places(rows: pa.Table, seed: int) -> np.ndarray:
    """Return each row's place in the split: the keyed hash of its group, or of its text where it has none."""
    encoded = pc.coalesce(rows["group"], rows["text_hash"]).combine_chunks().dictionary_encode()
    of_group = np.array(
        [unit_hash(seed, "split", group) for group in encoded.dictionary.to_pylist()], np.float64
    )
    return of_group[encoded.indices.to_numpy()] if len(of_group) else of_group


def ensure(
    store: Store,
    case: str,
    examples: Manifest,
    seed: int,
    evaluation: EvaluationTexts | None,
    screen: Callable[[], Screen | None],
) -> Manifest:
    """Return the sketches of a batch's examples, made if there are none yet.

    Args:
        store, case, examples, seed: the batch, and the key of the split's hashes.
        evaluation: texts of the external evaluation sets, that the rows are screened for.
        screen: makes the look-up of these; only called where the batch has no sketches yet.
    """

    def write(draft: Draft) -> Outcome:
        rows = pq.read_table(
            store.folder(examples) / "examples.parquet", columns=["text", "text_hash", "group"]
        )
        # Without compression it is mapped, not read.
        table = build(rows, seed, screen())
        feather.write_feather(table, str(draft.path / _FILE), compression="uncompressed")
        batch = ExamplesMetadata.of(examples).batch
        return NearDuplicateIndexMetadata(batch=batch, num_rows=len(rows)).as_dict(), []

    screened = {} if evaluation is None else {"evaluation_texts": evaluation.digest}
    return store.ensure(
        case,
        STAGE,
        write,
        version=VERSION,
        settings={},
        inputs={"labeled_examples": content_of(examples), **screened},
        seed=seed,
    )


def read(folder: Path) -> pa.Table:
    """Map the sketches in a folder; they take memory as they are read, until they are let go."""
    return feather.read_table(str(folder / _FILE), memory_map=True)
