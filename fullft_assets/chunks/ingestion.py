"""Which batches went through documents, examples and chunks with the settings of today.

A batch is done when it is tokenised, or held back by a red gate of its examples. The mark carries a digest of
everything that shapes the three stages, so an edit of the YAML, another tokenizer or a new version of the
code makes every batch due again; what did not change is found in the store.
"""

from fullft_assets import chunks, documents, examples
from fullft_assets.base_model import resolve_base_model
from fullft_assets.personal_data.entities import pipeline_key
from fullft_assets.settings.use_case import UseCase
from fullft_assets.store import Store, artifact_key, digest
from fullft_assets.store.metadata import Metadata

#: What a workload that does all three stages of a batch leaves, as a sign that it has ended well.
STAGE = "ingested_batch"


class IngestedMetadata(Metadata):
    """Metadata of `ingested_batch`: references of the artifacts of the three stages, by stage."""

    made: dict[str, str]


def version(use_case: UseCase) -> str:
    """Return the digest of what shapes a batch's artifacts, apart from its files."""
    settings = use_case.settings
    model = resolve_base_model(settings.base_model, use_case.project_root)
    return digest(
        {
            "code": [documents.VERSION, examples.VERSION, chunks.VERSION],
            "documents": documents.key_settings(use_case),
            "examples": {**examples.key_settings(settings), **pipeline_key(use_case)},
            "chunks": chunks.key_settings(settings),
            "tokenizer": chunks.tokenizer_digest(model, settings.chunks, settings.examples.task),
            "seed": settings.seed,
        }
    )[:12]


def key(use_case: UseCase, batch: str) -> str:
    """Return the key of `ingested_batch`: a batch's files never change, so its name determines them."""
    return artifact_key(STAGE, version(use_case), {}, {"batch": batch}, use_case.settings.seed)


def mark_done(store: Store, use_case: UseCase, batch: str) -> None:
    """Record that a batch is tokenised or held back."""
    store.write_pointer(f"{use_case.name}/ingested/{version(use_case)}/{batch}", {})


def done(store: Store, use_case: UseCase) -> set[str]:
    """Return the batches that need no run."""
    return set(store.list_pointers(f"{use_case.name}/ingested/{version(use_case)}"))
