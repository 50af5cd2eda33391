"""Keyed and content hashes: the identity of a text across batches, and every draw that looks random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def unit_hash(seed: int, purpose: str, value: str) -> float:
    """Return a number in [0, 1) that only depends on the arguments."""
    key = f"{seed}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=7).digest()) / 2**56


def text_hash(text: str) -> str:
    """Return 128 bits of the text's BLAKE2b as hex: the identity of a text across batches."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def messages_hash(turns: Sequence[tuple[str | None, str | None]]) -> str:
    """Return the hash of a conversation from its (role, content) turns."""
    return text_hash(json.dumps(turns, ensure_ascii=False, separators=(",", ":")))
