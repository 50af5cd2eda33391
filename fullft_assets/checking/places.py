"""Places that documents come from: what is wrong with a folder, a file or a bucket that a YAML names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fullft_assets.base_model import suggest_path
from fullft_assets.documents.aliases import shown_path
from fullft_assets.documents.formats import is_readable, known_endings, reads_any_ending
from fullft_assets.documents.sources import Folder
from fullft_assets.errors import DataError
from fullft_assets.extras import problem_without
from fullft_assets.settings.use_case import locate

#: Endings of archives that are not read.
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def is_bucket(path: str) -> bool:
    """Return whether a path is a well-formed s3://bucket/prefix; its content is not listed: definitions load
    often, without a network.
    """
    return re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*/?", path) is not None


def without_credentials(path: str) -> str:
    """Return a path for a message, without what is before the host or the bucket."""
    scheme, mark, address = path.partition("://")
    return f"{scheme}{mark}***@{address.rpartition('@')[2]}" if "@" in address else path


def address_problem(path: str) -> str | None:
    """Return what is wrong with a path that documents may come from, as it is written, or None."""
    if is_bucket(path):
        return problem_without("boto3")
    if "://" in path and "@" in path:
        return (
            f"{without_credentials(path)}: a path has no credentials; give them in the environment, by a"
            " profile or by a role"
        )
    if path.startswith("s3:"):
        return (
            f"{path} is not s3://bucket/prefix; a bucket's name has 3 to 63 lower-case letters, digits, dots"
            " and dashes"
        )
    if "://" in path:
        return (
            f"{path} is neither a folder on this machine nor s3://bucket/prefix; copy or mount the documents"
            " and name that folder"
        )
    return None


def place_problem(path: str, root: Path) -> str | None:
    """Return what is wrong with a path that documents may come from, or with the folder that it names, or
    None.
    """
    problem, folder = address_problem(path), locate(path, root)
    if problem is not None or is_bucket(path):
        return problem
    if not folder.exists():
        hint = suggest_path(path, root) or f"; relative paths start at {root}"
        return f"folder not found: {path}{hint}"
    if not folder.is_dir():
        return f"{path} is a file; name the folder that contains it: {Path(path).parent}"
    return None


def contents_problem(path: str, root: Path, format_: str | None = None) -> str | None:
    """Return what is wrong with the content of a folder that documents come from, or None.

    Args:
        path: the folder.
        root: where relative paths start.
        format_: `documents.format`. Default: it is not the folder of `documents.path`.
    """
    folder = locate(path, root)
    try:
        # Stops at the first one: a folder may contain 100,000 files, and definitions load often.
        # Links that are not followed are counted by the check and by each look.
        source = Folder(
            folder, follow_links=True, any_ending=format_ is not None and reads_any_ending(format_)
        )
        if any(os.access(folder / file.path, os.R_OK) for file in source.walk()):
            return None
    except DataError as error:
        return str(error)
    hint = _hint(source.others) if source.others and format_ is not None else ""
    return f"no readable document below {path}; known endings: {known_endings()}{hint}"


def _hint(paths: Sequence[str]) -> str:
    """Return what to do with files that no format reads, of which one is named."""
    if packed := [path for path in paths if path.lower().endswith(_ARCHIVES)]:
        return f"; unpack {shown_path(min(packed))} and deliver its files"
    return "; if each file is one text, set documents.format to text"


def external_problem(path: str, root: Path) -> str | None:
    """Return what is wrong with a file or folder of documents that are no delivery, or None; a bucket is
    asked when it is read.
    """
    place = locate(path, root)
    if place.is_file():
        return (
            None
            if is_readable(place.name)
            else f"{path} has an ending that is not read; known endings: {known_endings()}"
        )
    if "://" not in path and not path.startswith("s3:") and not place.exists():
        return f"{path} not found{suggest_path(path, root) or f'; relative paths start at {root}'}"
    return place_problem(path, root) or (None if is_bucket(path) else contents_problem(path, root))


def overlap(path: str, other: str, root: Path) -> bool:
    """Return whether one of two places contains the other."""
    if is_bucket(path) != is_bucket(other):
        return False
    if is_bucket(path):
        one, two = (f"{url.rstrip('/')}/" for url in (path, other))
        return one.startswith(two) or two.startswith(one)
    folder, training = (locate(name, root).resolve() for name in (path, other))
    return folder.is_relative_to(training) or training.is_relative_to(folder)
