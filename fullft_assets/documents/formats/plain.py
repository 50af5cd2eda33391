"""Plain text and Markdown: one document a file, with the fields `text`, `file` and `folder`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any


def document(name: str, text: str) -> dict[str, Any]:
    """Return the record of a whole-file document: its text, its path, and the name of the folder that holds it."""
    return {"text": text, "file": name, "folder": PurePosixPath(name).parent.name or None}
