"""documents: delivered files -> batches -> raw documents, unchanged and traceable to file and row."""

from fullft_assets.documents.batches import (
    MAX_CUTS,
    MAX_RUNS_A_TICK,
    Batch,
    Kind,
    cut_batches,
    is_delivered,
    list_batches,
    named_files,
    read_batch,
)
from fullft_assets.documents.delivery import (
    FILES_ARE_READ,
    Look,
    check_leftovers,
    last_arrival,
    left_in_place,
    look,
    skipped,
    source_of,
)
from fullft_assets.documents.erasure import erased_digest
from fullft_assets.documents.names import restore
from fullft_assets.documents.raw import (
    CHECKS,
    VERSION,
    WINDOW_CHECKS,
    keep,
    key_settings,
    masked_kinds,
    was_kept,
)
from fullft_assets.documents.reading import RawMetadata, read_documents
from fullft_assets.documents.sources import Folder, S3Prefix, SourceFile
