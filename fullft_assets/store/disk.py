"""Files that a power cut leaves as they were or as they are now, never in between and never forgotten."""

from __future__ import annotations

import os
from pathlib import Path

from fullft_assets.store import sync


def replace_synced(path: Path, text: str) -> None:
    """Write a file that is there in full or not at all, and on the disk when this returns.

    Args:
        path: the file; one that is there is replaced.
        text: its content.
    """
    # Two ranks may write the same one.
    aside = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        # On a full disk it would keep the room that it found.
        aside.unlink(missing_ok=True)
        raise
    # A file's own sync leaves out its name.
    sync(path.parent)
