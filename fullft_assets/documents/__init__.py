"""documents: delivered files -> batches -> raw documents, unchanged and traceable to file and row."""

from fullft_assets.documents.batches import MAX_CUTS, Batch, Kind, cut_batches, is_delivered, list_batches, read_batch
from fullft_assets.documents.delivery import Look, left_in_place, look, source_of
from fullft_assets.documents.erasure import erased_digest
from fullft_assets.documents.metadata import RawMetadata
from fullft_assets.documents.raw import CHECKS, VERSION, keep, key_settings, was_kept
from fullft_assets.documents.reading import read_documents
from fullft_assets.documents.sources import Folder, S3Prefix, SourceFile

__all__ = [
    "Batch",
    "CHECKS",
    "Folder",
    "Kind",
    "Look",
    "MAX_CUTS",
    "RawMetadata",
    "S3Prefix",
    "SourceFile",
    "VERSION",
    "cut_batches",
    "erased_digest",
    "is_delivered",
    "keep",
    "key_settings",
    "left_in_place",
    "list_batches",
    "look",
    "read_batch",
    "read_documents",
    "source_of",
    "was_kept",
]
