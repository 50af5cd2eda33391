"""Counts in the metadata of a table, once erased documents are gone from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fullft_assets.examples import ExamplesMetadata, count_labels, count_reasons
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Manifest, digest

if TYPE_CHECKING:
    import pyarrow as pa


def batch_of(manifest: Manifest) -> str:
    """Return what the examples of a batch and its quarantine share, and no other artifacts do."""
    return digest([manifest.inputs, manifest.settings, manifest.seed, manifest.version])


def recounted(manifest: Manifest, kept: pa.Table, num_gone: int, num_gone_quarantined: int) -> dict[str, Any]:
    """Return the metadata that counts rows, without the erased ones.

    Args:
        manifest: as it was.
        kept: its rows that stay.
        num_gone: its erased rows.
        num_gone_quarantined: of examples, the erased rows of their batch's quarantine.
    """
    counts: dict[str, Any] = {"num_erased": manifest.metadata.get("num_erased", 0) + num_gone}
    if manifest.stage == "labeled_examples":
        num_quarantined = ExamplesMetadata.of(manifest).num_quarantined - num_gone_quarantined
        counts |= {"num_rows": len(kept) + num_quarantined, "num_valid": len(kept), "num_quarantined": num_quarantined}
        counts["label_counts"] = count_labels(kept, ExamplesSettings.model_validate(manifest.settings))
    elif manifest.stage == "quarantined_examples":
        counts |= {"num_quarantined": len(kept)} | count_reasons(kept)
    else:
        counts["num_rows"] = len(kept)
    return counts
