"""Digests: the identity of content, the key of an artifact, and every draw that looks random."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """Return the first 20 hex digits of the sha256 of a JSON-serialisable value, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def artifact_key(stage: str, version: str, settings: Any, inputs: Mapping[str, Any], seed: int) -> str:
    """Return the key of an artifact.

    Args:
        settings: the settings that determine the content (JSON-serialisable).
        inputs: content digest (or any JSON value that pins the content) of each input, by name.
    """
    return digest(
        {"stage": stage, "version": version, "settings": settings, "inputs": dict(inputs), "seed": seed}
    )


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unit_hash(seed: int, purpose: str, value: str) -> float:
    """Return a number in [0, 1) that only depends on the arguments."""
    key = f"{seed}/{purpose}".encode()
    return (
        int.from_bytes(
            hashlib.blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=7).digest()
        )
        / 2**56
    )


def text_hash(text: str) -> str:
    """Return 128 bits of the text's BLAKE2b as hex: the identity of a text across batches."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
