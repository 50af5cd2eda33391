"""What the manifest of a batch's raw documents (or of a window's production documents) contains beside its
files.
"""

from __future__ import annotations

from typing import Annotated

from fullft_assets.store.metadata import Metadata, Private


class RawMetadata(Metadata):
    """Metadata of `raw_documents` and `production_documents`."""

    batch: str
    #: The source that the batch was cut from.
    uri: str
    num_files: int
    num_bytes: int
    num_rows: int
    num_malformed: int
    num_erased: int
    #: Rows in which personal data was masked as they were read.
    num_masked: int = 0
    #: Times of the files that were read, in nanoseconds, by path.
    files: Annotated[dict[str, int], Private.FILES]
    #: Encodings other than UTF-8, by path.
    encodings: Annotated[dict[str, str], Private.BY_FILE]
    #: Text files by encoding.
    num_files_by_encoding: dict[str, int]
    #: Files that were read once and are gone, without what today's settings ask for.
    taken_away: Annotated[list[str] | None, Private.FILES] = None
