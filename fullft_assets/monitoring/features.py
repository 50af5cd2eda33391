"""Features of documents, and what is kept of a window for the drift tests: few numbers, no text, no row."""

import hashlib
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Features:
    """Features of documents, one entry for each document.

    Attributes:
        num_tokens: [n] tokens of the full text, without special tokens.
        fertility: [n] tokens per word.
        unknown_share: [n] share of the text's words that are not in the training texts.
        entropy: [n] entropy of the predicted label distribution, in nats. None: the model predicts none.
        predicted: [n] index of the most probable label; None as well.
        embeddings: [n, d] pooled last hidden state of the base model, float32.
    """

    num_tokens: np.ndarray
    fertility: np.ndarray
    unknown_share: np.ndarray
    entropy: np.ndarray | None
    predicted: np.ndarray | None
    embeddings: np.ndarray

    def __post_init__(self) -> None:
        for name, values in self._arrays().items():
            if len(values) != len(self) or values.ndim != (2 if name == "embeddings" else 1):
                raise ValueError(f"features: `{name}` has shape {values.shape}, the others {len(self)} rows")
            if not np.isfinite(values).all():
                raise ValueError(f"features: `{name}` is not finite; the model or a text is broken")

    def __len__(self) -> int:
        return len(self.num_tokens)

    def _arrays(self) -> dict[str, np.ndarray]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in values.items() if array is not None}

    @property
    def numbers(self) -> np.ndarray:
        """[n, 3 or 4] the statistics of each text and of its prediction, in the order of `NUMBERS`."""
        arrays = self._arrays()
        return np.stack([arrays[name].astype(np.float64) for name in NUMBERS if name in arrays], axis=1)


#: The features that are one number a document; the last one only where the model predicts a label.
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
        self.hashes = hashes
        self._seed = seed
        self._hash_set = frozenset(hashes.tolist())

    @classmethod
    def of(cls, texts: Iterable[str], seed: int) -> "Vocabulary":
        """Return the words of these texts, hashed with the seed as the key."""
        words = {word for text in texts for word in words_of(text)}
        return cls(np.array(sorted(_hashed(word, seed) for word in words), np.uint64), seed)

    def __contains__(self, word: str) -> bool:
        return _hashed(word, self._seed) in self._hash_set


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
    probabilities: np.ndarray | None,
    embeddings: np.ndarray,
) -> Features:
    """Return the features of texts from models' outputs for them.

    Args:
        texts: [n] texts.
        num_tokens: [n] tokens of the full text, without special tokens.
        probabilities: [n, k] predicted label distribution; None: the model predicts none.
        embeddings: [n, d] pooled last hidden state.
    """
    words = [words_of(text) for text in texts]
    counts = np.asarray(num_tokens, dtype=np.int64).reshape(len(texts))
    shares = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    return Features(
        num_tokens=counts,
        fertility=counts
        / np.array([max(len(row), 1) for row in words], dtype=np.float64).reshape(len(texts)),
        unknown_share=np.array(
            [sum(word not in vocabulary for word in row) / max(len(row), 1) for row in words], np.float64
        ),
        entropy=None if shares is None else -np.sum(shares * np.log(np.maximum(shares, 1e-12)), axis=1),
        predicted=None if shares is None else shares.argmax(axis=1).astype(np.int64),
        embeddings=np.asarray(embeddings, dtype=np.float32),
    )


_MEAN = "mean_"


@dataclass(frozen=True)
class Sums:
    """What is stored of a window, for the comparison with later windows.

    Attributes:
        num_rows: documents that count, each independent of the others.
        means: by drift test, the mean coordinates of these documents.
        numbers: [3 or 4] means of the features in `features.NUMBERS`.
        counts: [labels] documents by predicted label; empty where the model predicts none.
        novel_share: share of documents farther from the held-out rows than 95% of those are from each other,
            minus 5%. None: an erasure removed the held-out rows' embeddings.
    """

    num_rows: int
    means: Mapping[str, np.ndarray]
    numbers: np.ndarray
    counts: np.ndarray
    novel_share: float | None

    def as_numbers(self) -> dict[str, float]:
        """Return the numbers that are plotted over the windows, by name."""
        plotted = {f"{_MEAN}{name}": float(value) for name, value in zip(NUMBERS, self.numbers, strict=False)}
        return plotted | ({} if self.novel_share is None else {"novel_share": self.novel_share})

    def save(self, path: Path) -> None:
        """Write the sums as an .npz file."""
        arrays = {f"{_MEAN}{name}": mean for name, mean in self.means.items()}
        arrays |= {"num_rows": self.num_rows, "numbers": self.numbers, "counts": self.counts}
        save_arrays(path, arrays | ({} if self.novel_share is None else {"novel_share": self.novel_share}))

    @classmethod
    def load(cls, path: Path) -> "Sums":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            means = {
                name.removeprefix(_MEAN): arrays[name] for name in arrays.files if name.startswith(_MEAN)
            }
            novel_share = float(arrays["novel_share"]) if "novel_share" in arrays else None
            return cls(int(arrays["num_rows"]), means, arrays["numbers"], arrays["counts"], novel_share)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray | float]) -> None:
    """Write an .npz file."""
    # Through an untyped name: the stub of `savez` takes each keyword for its option `allow_pickle`.
    save: Callable[..., None] = np.savez
    save(path, **arrays)
