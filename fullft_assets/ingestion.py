"""Which batches went through documents, examples and chunks with the settings of today.

A batch is done when it is tokenised, or held back by a red gate of its examples. The mark carries a digest of
everything that shapes the three stages, so an edit of the YAML, another tokenizer or a new version of the code
makes every batch due again; what did not change is found in the store.
"""

from __future__ import annotations

import hashlib

from fullft_assets import chunks, documents, examples
from fullft_assets.base_model import resolve_base_model
from fullft_assets.store import Store, digest
from fullft_assets.use_case import UseCase


def version(use_case: UseCase) -> str:
    """Return the digest of what shapes a batch's artifacts, apart from its files."""
    settings = use_case.settings
    tokenizer = resolve_base_model(settings.base_model, use_case.project_root) / "tokenizer.json"
    return digest(
        {
            "code": [documents.VERSION, examples.VERSION, chunks.VERSION],
            "documents": documents.key_settings(use_case),
            "examples": examples.key_settings(settings),
            "chunks": chunks.key_settings(settings),
            "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
            "seed": settings.seed,
        }
    )[:12]


def mark_done(store: Store, use_case: UseCase, batch: str) -> None:
    """Record that a batch is tokenised or held back."""
    store.write_pointer(f"{use_case.name}/ingested/{version(use_case)}/{batch}", {})


def done(store: Store, use_case: UseCase) -> set[str]:
    """Return the batches that need no run."""
    return set(store.list_pointers(f"{use_case.name}/ingested/{version(use_case)}"))
