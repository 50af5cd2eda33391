"""What the manifest of a batch's raw documents (or of a window's production documents) contains beside its
files.
"""

from __future__ import annotations

from fullft_assets.store.metadata import Metadata


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
    files: dict[str, int]
    #: Encodings other than UTF-8, by path.
    encodings: dict[str, str]
    #: Text files by encoding.
    num_files_by_encoding: dict[str, int]
    #: Files that were read once and are gone, without what today's settings ask for.
    taken_away: list[str] | None = None
