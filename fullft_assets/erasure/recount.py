"""What is told of a table in numbers, once erased documents are gone from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fullft_assets.examples import MERGED, SUPERSEDED, count_labels, count_reasons
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Manifest, digest

if TYPE_CHECKING:
    import pyarrow as pa


def batch_of(manifest: Manifest) -> str:
    """Return what the examples of a batch and its quarantine share, and no other artifacts do."""
    return digest([manifest.inputs, manifest.settings, manifest.seed, manifest.version])


def recounted(manifest: Manifest, kept: pa.Table, gone: pa.Table, set_aside: Sequence[str]) -> dict[str, Any]:
    """Return the metadata that counts rows, without the erased ones.

    Args:
        manifest: as it was.
        kept, gone: its rows that stay, and the erased ones; without spare rows, which are among those set aside.
        set_aside: of examples, why erased rows of the same batch stand in its quarantine.
    """
    before = manifest.metadata
    counts: dict[str, Any] = {"num_erased": before.get("num_erased", 0) + len(gone)}
    if manifest.stage == "labeled_examples":
        counts |= {"num_rows": before["num_rows"] - len(gone) - len(set_aside), "num_valid": len(kept)} | _of_quarantine(before, set_aside)
        counts["label_counts"] = count_labels(kept, ExamplesSettings.model_validate(manifest.settings))
    elif manifest.stage == "quarantined_examples":
        counts |= _of_quarantine(before, gone["reasons"].to_pylist()) | count_reasons(kept)
    else:
        counts["num_rows"] = len(kept)
    return counts


def _of_quarantine(before: dict[str, Any], gone: Sequence[str]) -> dict[str, int]:
    num_superseded = sum(reasons in (SUPERSEDED, MERGED) for reasons in gone)
    return {
        "num_superseded": before["num_superseded"] - num_superseded,
        "num_quarantined": before["num_quarantined"] - (len(gone) - num_superseded),
    }
