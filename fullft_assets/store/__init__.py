"""The artifact store: immutable folders named by digest, the manifest written last."""

from fullft_assets.store.artifacts import MANIFEST, CheckOutcome, Draft, Identity, Manifest, Outcome, Store, artifact_key, digest, sync

__all__ = ["CheckOutcome", "Draft", "Identity", "MANIFEST", "Manifest", "Outcome", "Store", "artifact_key", "digest", "sync"]
