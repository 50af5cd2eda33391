"""Which slice each test row is in: its source, length, language, domain or another field, and whether the
champion was judged on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.documents.aliases import alias
from fullft_assets.errors import StoreError
from fullft_assets.evaluation import CHAMPION
from fullft_assets.evaluation.slices import LABEL, OLD_TEST
from fullft_assets.examples.texts import language_of
from fullft_assets.settings import UseCaseSettings
from fullft_assets.snapshot import Split, load_values, read_index
from fullft_assets.store import Manifest, Store
from fullft_assets.task import task_of

Slicing = dict[str, list[str | None]]


def slices_of(
    store: Store, inputs: Mapping[str, Manifest], settings: UseCaseSettings, test: Split
) -> Slicing:
    """Return the slice of each test row by the kind of slice; None: the row is in no slice of this kind."""
    snapshot = inputs["training_snapshot"]
    slicing: Slicing = {}
    for kind in ("source", "domain", "slice_by"):
        by_id = load_values(store, snapshot, "test", kind)
        # As its user named it: there may be a field called like a kind of slice.
        name = f"field {settings.examples.slice_by}" if kind == "slice_by" else kind
        # A file's name may say whom a document is about; `fullft files` prints which file an alias is.
        slicing[name] = [
            alias(value) if kind == "source" and value is not None else value
            for value in map(by_id.get, test.ids)
        ]
    slicing["length"] = _lengths(test.texts)
    slicing["language"] = [language_of(text) for text in test.texts]
    if task_of(settings.examples).has_labels:
        slicing[LABEL] = [None] * len(test)
    old = _judged_the_champion(store, inputs)
    if old is not None:
        slicing[OLD_TEST] = [
            "rows that it was judged on" if id_ in old else "rows that came since" for id_ in test.ids
        ]
    return {
        kind: values
        for kind, values in slicing.items()
        if kind == LABEL or any(value is not None for value in values)
    }


def _lengths(texts: list[str]) -> list[str | None]:
    """Return the quarter of the lengths that each text is in; fewer where many are equally long."""
    lengths = np.array([len(text) for text in texts])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="inverted_cdf"))
    part = np.searchsorted(edges, lengths)
    names = {
        number: f"{lengths[part == number].min():,} to {lengths[part == number].max():,} characters"
        for number in set(part.tolist())
    }
    return [names[number] for number in part.tolist()]


def _judged_the_champion(store: Store, inputs: Mapping[str, Manifest]) -> set[str] | None:
    """Return the ids of the test rows of the champion's snapshot; None where there is no champion, or it has
    the same snapshot.
    """
    if CHAMPION not in inputs:
        return None
    ref = CheckpointMetadata.of(inputs[CHAMPION]).snapshot
    if ref == inputs["training_snapshot"].ref:
        return None
    try:
        index = read_index(store, store.load(ref))
    except StoreError:  # deleted by the user: its rows are not known
        return None
    return {
        id_
        for id_, split in zip(index["id"].to_pylist(), index["split"].to_pylist(), strict=True)
        if split == "test"
    }
