"""Counts in the metadata of a table, once erased documents are gone from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fullft_assets.chunks import ChunksMetadata
from fullft_assets.documents import RawMetadata
from fullft_assets.examples import ExamplesMetadata, QuarantineMetadata, count_labels, count_reasons
from fullft_assets.settings import ExamplesSettings
from fullft_assets.store import Manifest, digest

if TYPE_CHECKING:
    import pyarrow as pa


_METADATA = {
    "raw_documents": RawMetadata,
    "production_documents": RawMetadata,
    "labeled_examples": ExamplesMetadata,
    "quarantined_examples": QuarantineMetadata,
    "tokenized_chunks": ChunksMetadata,
}


def files_of(manifest: Manifest) -> set[str] | None:
    """Return the files that a table's metadata names; None where it names none."""
    metadata = _METADATA[manifest.stage].of(manifest)
    return set(metadata.files) if isinstance(metadata, RawMetadata | ExamplesMetadata) else None


def batch_of(manifest: Manifest) -> str:
    """Return what the examples of a batch and its quarantine share, and no other artifacts do."""
    return digest([manifest.inputs, manifest.settings, manifest.seed, manifest.version])


def recounted(manifest: Manifest, kept: pa.Table, num_gone: int, num_gone_quarantined: int) -> dict[str, Any]:
    """Return the metadata that counts rows, without the erased ones."""
    counts: dict[str, Any] = {
        "num_erased": (_METADATA[manifest.stage].of(manifest).num_erased or 0) + num_gone
    }
    if manifest.stage == "labeled_examples":
        num_quarantined = ExamplesMetadata.of(manifest).num_quarantined - num_gone_quarantined
        counts |= {
            "num_rows": len(kept) + num_quarantined,
            "num_valid": len(kept),
            "num_quarantined": num_quarantined,
        }
        counts["label_counts"] = count_labels(kept, ExamplesSettings.from_manifest(manifest.settings))
    elif manifest.stage == "quarantined_examples":
        counts |= {"num_quarantined": len(kept)} | count_reasons(kept)
    else:
        counts["num_rows"] = len(kept)
    return counts
