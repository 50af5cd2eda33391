"""The ending of a file's name, and the codec that the file is packed with."""

from __future__ import annotations

from pathlib import PurePosixPath

#: Codec (by the name that pyarrow gives it) by ending.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def ending_of(name: str) -> str:
    """Return a file's ending in lower case; the ending of a compression is left out."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def compression_of(name: str) -> str | None:
    """Return the codec that a file is packed with, or None."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)
