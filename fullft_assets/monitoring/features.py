"""Features: what the drift tests see of each document."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from fullft_assets.errors import StoreError

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Features:
    """Features of documents, one entry for each document.

    Attributes:
        num_tokens: [n] tokens of the full text, without special tokens.
        fertility: [n] tokens per word.
        unknown_share: [n] share of the text's words that are not in the training texts.
        entropy: [n] entropy of the predicted label distribution, in nats.
        predicted: [n] index of the most probable label.
        embeddings: [n, d] pooled last hidden state, float32.
    """

    num_tokens: np.ndarray
    fertility: np.ndarray
    unknown_share: np.ndarray
    entropy: np.ndarray
    predicted: np.ndarray
    embeddings: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            values, num_rows = getattr(self, field.name), len(self.num_tokens)
            if len(values) != num_rows or values.ndim != (2 if field.name == "embeddings" else 1):
                raise ValueError(f"features: `{field.name}` has shape {values.shape}, the others {num_rows} rows")
            if not np.isfinite(values).all():
                raise ValueError(f"features: `{field.name}` is not finite; the model or a text is broken")

    def __len__(self) -> int:
        return len(self.num_tokens)

    def select(self, indices: np.ndarray | Sequence[int]) -> Features:
        """Return the features of these rows."""
        indices = np.asarray(indices, dtype=np.int64)
        return Features(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})

    def save(self, path: Path) -> None:
        """Write the features as a compressed .npz file."""
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            missing = [field.name for field in fields(cls) if field.name not in arrays]
            if missing:
                raise StoreError(f"{path}: no array `{missing[0]}`; materialise the drift report again")
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def one_per_group(texts: Sequence[str], groups: Sequence[str | None], seed: int, *, limit: int | None = None) -> np.ndarray:
    """Return the indices, ascending, of one row a group: the one that a hash keyed with the seed puts first.

    Related texts that arrive in bursts are not independent: counted one by one they raise alarms in most unchanged windows. A row
    without a group is grouped with the texts equal to it. The choice depends on the texts, not on their order.

    Args:
        groups: [n] group of each row; None or "" = none.
        limit: maximum number of rows, drawn by the same hash. Default: all groups.
    """
    ranks = [_keyed_hash(f"{seed}:{text}") for text in texts]
    first: dict[tuple[str, str], int] = {}
    for index, (text, group) in enumerate(zip(texts, groups, strict=True)):
        key = ("group", group) if group else ("text", text)
        if key not in first or ranks[index] < ranks[first[key]]:
            first[key] = index
    chosen = sorted(first.values(), key=lambda index: (ranks[index], index))
    return np.array(sorted(chosen[:limit]), dtype=np.int64)


def vocabulary_of(texts: Sequence[str]) -> set[str]:
    """Return the words of these texts, case folded."""
    return {word for text in texts for word in _WORD.findall(text.casefold())}


def build_features(
    texts: Sequence[str],
    num_tokens: Sequence[int] | np.ndarray,
    vocabulary: Collection[str],
    probabilities: np.ndarray,
    embeddings: np.ndarray,
) -> Features:
    """Return the features of texts from a model's outputs for them.

    Args:
        texts: [n] texts.
        num_tokens: [n] tokens of the full text, without special tokens.
        probabilities: [n, k] predicted label distribution.
        embeddings: [n, d] pooled last hidden state.
    """
    words = [_WORD.findall(text.casefold()) for text in texts]
    unknown = [sum(word not in vocabulary for word in row) / max(len(row), 1) for row in words]
    counts = np.asarray(num_tokens, dtype=np.int64).reshape(len(texts))
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return Features(
        num_tokens=counts,
        fertility=counts / np.array([max(len(row), 1) for row in words], dtype=np.float64).reshape(len(texts)),
        unknown_share=np.array(unknown, dtype=np.float64),
        entropy=-np.sum(probabilities * np.log(np.maximum(probabilities, 1e-12)), axis=1),
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        embeddings=np.asarray(embeddings, dtype=np.float32),
    )


def _keyed_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
