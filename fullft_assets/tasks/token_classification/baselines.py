"""Baselines of labelled spans: none at all, a dictionary of the training spans, a probe on the frozen base
model's tokens.

Saved as JSON and npz, never pickled.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext, UntrainedBaseline
from fullft_assets.tasks.classification.baselines import FrozenProbe
from fullft_assets.tasks.token_classification.assessment import Span

#: A phrase is in the dictionary if at least this share of its places in the training texts is a span.
_LEAST_PRECISION = 0.5
_WORD = re.compile(r"\w+|[^\w\s]")


class NoSpans(UntrainedBaseline):
    """Never finds a span."""

    name = "no_spans"
    title = "no spans at all"
    tasks = ("token_classification",)

    def predict(self, rows: Split) -> list[list[Span]]:
        return [[] for _ in rows.texts]


@dataclass(frozen=True)
class Dictionary(Baseline):
    """Looks the phrases of training spans up, the longest first; case and the space between words do not
    count.

    A phrase has the label that it has most often, and is dropped where it is more often no span than one.
    Phrases are kept by their digests: an erasure cannot rewrite what was learned, so no text of a document
    may be in it.

    Attributes:
        phrases: digest of a phrase -> its label.
        lengths: digest of a first word -> the lengths in words of the phrases that begin with it, the longest
            first.
    """

    name = "dictionary"
    title = "dictionary of training spans"
    serving_rank = 0
    tasks = ("token_classification",)

    phrases: dict[str, int]
    lengths: dict[str, list[int]]

    @classmethod
    def fit(cls, train: Split, context: BaselineContext) -> Self:
        from fullft_assets.tasks.token_classification.recipe import normal

        assert train.spans is not None
        return cls.of_spans(train.texts, normal(train.texts, train.spans))

    @classmethod
    def of_spans(cls, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> Self:
        votes: dict[tuple[str, ...], Counter[int]] = {}
        for text, row in zip(texts, spans, strict=True):
            for start, end, label in row:
                phrase = tuple(word for word, _, _ in _words(text[start:end]))
                if phrase:
                    votes.setdefault(phrase, Counter())[label] += 1
        labels = {
            phrase: min(counts, key=lambda label: (-counts[label], label)) for phrase, counts in votes.items()
        }
        all_phrases = cls._of(labels)
        places = Counter[str]()
        right = Counter[str]()
        for text, row in zip(texts, spans, strict=True):
            true = set(row)
            for phrase, span in all_phrases._places(text):
                places[phrase] += 1
                right[phrase] += span in true
        return cls._of(
            {
                phrase: label
                for phrase, label in labels.items()
                if right[d := _digest(phrase)] >= _LEAST_PRECISION * places[d] > 0
            }
        )

    @classmethod
    def _of(cls, labels: dict[tuple[str, ...], int]) -> Self:
        lengths: dict[str, set[int]] = {}
        for phrase in labels:
            lengths.setdefault(_digest(phrase[:1]), set()).add(len(phrase))
        return cls(
            {_digest(phrase): label for phrase, label in labels.items()},
            {first: sorted(lengths_of_first, reverse=True) for first, lengths_of_first in lengths.items()},
        )

    def predict(self, rows: Split) -> list[list[Span]]:
        return self.find(rows.texts)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        return [[span for _, span in self._places(text)] for text in texts]

    def _places(self, text: str) -> list[tuple[str, Span]]:
        words = _words(text)
        at = 0
        places = []
        while at < len(words):
            for length in self.lengths.get(_digest((words[at][0],)), ()):
                phrase = _digest([word for word, _, _ in words[at : at + length]])
                if at + length <= len(words) and phrase in self.phrases:
                    places.append((phrase, (words[at][1], words[at + length - 1][2], self.phrases[phrase])))
                    at += length
                    break
            else:
                at += 1
        return places

    def save(self, folder: Path) -> None:
        (folder / "dictionary.json").write_text(
            json.dumps({"phrases": self.phrases, "lengths": self.lengths}), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(**json.loads((folder / "dictionary.json").read_text(encoding="utf-8")))


def _digest(words: Sequence[str]) -> str:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=12).hexdigest()


def _words(text: str) -> list[tuple[str, int, int]]:
    return [(match[0].casefold(), *match.span()) for match in _WORD.finditer(text)]


class TokenProbe(FrozenProbe):
    """The base model as it was, with a logistic regression on its tokens' hidden states as its head."""

    name = "token_probe"
    title = "frozen base model + trained head"
    tasks = ("token_classification",)
