"""The near-duplicate index: what each batch's texts are compared by, made once a batch and read ever after.

With it the snapshot of old batches and a new one costs what the new one's texts cost, and some sorting of
integers: texts of old batches are read only where they are a candidate for a pair.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fullft_assets.examples import ExamplesMetadata
from fullft_assets.snapshot.frozen_batches import content_of
from fullft_assets.snapshot.metadata import NearDuplicateIndexMetadata, ScreenedMetadata
from fullft_assets.snapshot.near_text.minhash import BLOCK_TEXTS, Sketches, concatenate, sketch_sets
from fullft_assets.snapshot.near_text.shingles import ShingleSets, join, sets_and_minimizers
from fullft_assets.snapshot.screening import VERSION as SCREENING_VERSION
from fullft_assets.snapshot.screening import EvaluationTexts, Screen
from fullft_assets.store import Draft, Manifest, Outcome, Store
from fullft_assets.store.hashing import unit_hash

VERSION = "4"
STAGE = "near_duplicate_index"
SCREENED = "screened_examples"


@dataclass(frozen=True)
class BatchIndex:
    """What is kept of a batch's rows: their place in the split ([n] float64), the sketches of their texts and
    the minimizers of them.
    """

    places: np.ndarray
    sketches: Sketches
    minimizers: ShingleSets


def build(rows: pa.Table, seed: int) -> BatchIndex:
    """Return the index of rows with `text`, `text_hash` and `group`."""
    minimizers: list[ShingleSets] = []
    parts: list[Sketches] = []
    for start in range(0, len(rows), BLOCK_TEXTS):
        sets, of_part = sets_and_minimizers(rows["text"].slice(start, BLOCK_TEXTS), seed)
        minimizers.append(of_part)
        parts.append(sketch_sets(sets))
    return BatchIndex(places(rows, seed), concatenate(parts), join(minimizers, np.uint32))


def places(rows: pa.Table, seed: int) -> np.ndarray:
    """Return each row's place in the split: the keyed hash of its group, or of its text where it has none."""

    encoded = pc.coalesce(rows["group"], rows["text_hash"]).combine_chunks().dictionary_encode()
    of_group = np.array(
        [unit_hash(seed, "split", group) for group in encoded.dictionary.to_pylist()], np.float64
    )
    return of_group[encoded.indices.to_numpy()] if len(of_group) else of_group


def ensure(store: Store, case: str, examples: Manifest, seed: int) -> Manifest:
    """Return the index of a batch's examples, made if there is none yet."""

    def write(draft: Draft) -> Outcome:
        rows = pq.read_table(
            store.folder(examples) / "examples.parquet", columns=["text", "text_hash", "group"]
        )
        index = build(rows, seed)
        arrays = {"places": index.places, **vars(index.sketches)}
        arrays |= {
            "minimizers": index.minimizers.values,
            "num_minimizers": index.minimizers.sizes.astype(np.uint32),
        }
        for name, values in arrays.items():
            np.save(draft.path / f"{name}.npy", values, allow_pickle=False)
        batch = ExamplesMetadata.of(examples).batch
        return (
            NearDuplicateIndexMetadata(
                batch=batch, num_rows=len(rows), num_bands=len(index.sketches.bands)
            ).as_dict(),
            [],
        )

    return store.ensure(
        case,
        STAGE,
        write,
        version=VERSION,
        settings={},
        inputs={"labeled_examples": content_of(examples)},
        seed=seed,
    )


def read_index(folder: Path) -> BatchIndex:
    """Map the index in a folder; it takes memory as it is read, until it is let go."""

    def read(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    sketches = Sketches(**{field.name: read(field.name) for field in fields(Sketches)})
    sizes = read("num_minimizers").astype(np.int64)
    return BatchIndex(read("places"), sketches, ShingleSets.of(read("minimizers"), sizes))


def ensure_screened(
    store: Store,
    case: str,
    examples: Manifest,
    evaluation: EvaluationTexts,
    screen: Callable[[], Screen],
) -> Manifest:
    """Return which of a batch's examples overlap the external evaluation sets, found out if it is not known
    yet.

    Args:
        store, case, examples: the batch.
        evaluation: the sets' texts.
        screen: makes the look-up; only called where the batch was not screened yet.
    """

    def write(draft: Draft) -> Outcome:
        texts = pq.read_table(store.folder(examples) / "examples.parquet", columns=["text"])["text"]
        overlaps = screen().overlapping(texts)
        np.save(draft.path / "overlaps.npy", overlaps, allow_pickle=False)
        batch = ExamplesMetadata.of(examples).batch
        return (
            ScreenedMetadata(
                batch=batch, num_rows=len(overlaps), num_overlapping=int(overlaps.sum())
            ).as_dict(),
            [],
        )

    return store.ensure(
        case,
        SCREENED,
        write,
        version=SCREENING_VERSION,
        settings={},
        inputs={"labeled_examples": content_of(examples), "evaluation_texts": evaluation.digest},
        seed=0,
    )
