"""Features: what the drift test sees of each document."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

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
        embeddings: [n, d] pooled last hidden state of the base model, float32.
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
                raise ValueError(
                    f"features: `{field.name}` has shape {values.shape}, the others {num_rows} rows"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"features: `{field.name}` is not finite; the model or a text is broken")

    def __len__(self) -> int:
        return len(self.num_tokens)

    def select(self, indices: np.ndarray | Sequence[int]) -> Features:
        """Return the features of these rows."""
        indices = np.asarray(indices, dtype=np.int64)
        return Features(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})

    @property
    def numbers(self) -> np.ndarray:
        """[n, 4] the statistics of each text and of its prediction, in the order of `NUMBERS`."""
        return np.stack([getattr(self, name).astype(np.float64) for name in NUMBERS], axis=1)


#: The features that are one number a document.
NUMBERS = ("num_tokens", "fertility", "unknown_share", "entropy")


def words_of(text: str) -> list[str]:
    """Return the words of a text, case folded."""
    return _WORD.findall(text.casefold())


class Vocabulary:
    """The words of the training texts, case folded, as keyed hashes: it only answers whether it has a word.

    Attributes:
        hashes: uint64, ascending, each once.
    """

    def __init__(self, hashes: np.ndarray, seed: int):
        self.hashes, self._seed = hashes, seed
        self._known = frozenset(hashes.tolist())

    @classmethod
    def of(cls, texts: Iterable[str], seed: int) -> Vocabulary:
        """Return the words of these texts, hashed with the seed as the key."""
        words = {word for text in texts for word in words_of(text)}
        return cls(np.array(sorted(_hashed(word, seed) for word in words), np.uint64), seed)

    def __contains__(self, word: str) -> bool:
        return _hashed(word, self._seed) in self._known


@lru_cache(maxsize=1 << 18)
def _hashed(word: str, seed: int) -> int:
    key = f"words/{seed}".encode()
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest(), "little"
    )


def build_features(
    texts: Sequence[str],
    num_tokens: Sequence[int] | np.ndarray,
    vocabulary: Container[str],
    probabilities: np.ndarray,
    embeddings: np.ndarray,
) -> Features:
    """Return the features of texts from models' outputs for them.

    Args:
        texts: [n] texts.
        num_tokens: [n] tokens of the full text, without special tokens.
        probabilities: [n, k] predicted label distribution.
        embeddings: [n, d] pooled last hidden state.
    """
    words = [words_of(text) for text in texts]
    unknown = [sum(word not in vocabulary for word in row) / max(len(row), 1) for row in words]
    counts = np.asarray(num_tokens, dtype=np.int64).reshape(len(texts))
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return Features(
        num_tokens=counts,
        fertility=counts
        / np.array([max(len(row), 1) for row in words], dtype=np.float64).reshape(len(texts)),
        unknown_share=np.array(unknown, dtype=np.float64),
        entropy=-np.sum(probabilities * np.log(np.maximum(probabilities, 1e-12)), axis=1),
        predicted=probabilities.argmax(axis=1).astype(np.int64),
        embeddings=np.asarray(embeddings, dtype=np.float32),
    )
