"""Names of files that others wrote: in a manifest, or in the index of a model's weights."""

from __future__ import annotations


def is_inside(name: str) -> bool:
    """Return whether a file's relative name stays below the folder that it is joined to, on every system."""
    return (
        "\\" not in name and "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
    )
