"""The cheaper ways to labelled spans: none at all, a dictionary of the training spans, a probe on the frozen backbone's tokens.

Saved as JSON and npz, never pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, PreTrainedModel

from fullft_assets.base_model import ModelFolder
from fullft_assets.engine.recipe import Listener
from fullft_assets.models import loading
from fullft_assets.models.embeddings import initialise_added
from fullft_assets.models.inference import forward_batches
from fullft_assets.models.token_loss import IGNORED
from fullft_assets.tasks.token_classification.tagging import Reading, Scores, Span, find_spans

#: A phrase is in the dictionary if at least this share of its places in the training texts is a span.
_LEAST_PRECISION = 0.5
#: Tokens that the probe is fitted on, drawn at random from the training rows.
_MOST_TOKENS = 30_000
_WORD = re.compile(r"\w+|[^\w\s]")
#: Score of a tag that no drawn token has.
_NEVER = -1e4


class Dictionary:
    """Looks the phrases of training spans up, the longest first; case and the space between words do not count.

    A phrase has the label that it has most often, and is left out where it is more often no span than one. Phrases are kept by
    their digests: an erasure cannot rewrite what was learned, and so no text of a document may stand in it.

    Args:
        phrases: digest of a phrase -> its label.
        lengths: digest of a first word -> the lengths in words of the phrases that begin with it, the longest first.
    """

    def __init__(self, phrases: dict[str, int], lengths: dict[str, list[int]]):
        self.phrases, self.lengths = phrases, lengths

    @classmethod
    def fit(cls, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> Dictionary:
        """Collect the phrases of training spans, and count where else these stand."""
        votes: dict[tuple[str, ...], Counter[int]] = {}
        for text, row in zip(texts, spans, strict=True):
            for start, end, label in row:
                phrase = tuple(word for word, _, _ in _words(text[start:end]))
                if phrase:
                    votes.setdefault(phrase, Counter())[label] += 1
        labels = {phrase: min(found, key=lambda label: (-found[label], label)) for phrase, found in votes.items()}
        every, places, right = cls._of(labels), Counter[str](), Counter[str]()
        for text, row in zip(texts, spans, strict=True):
            true = set(row)
            for phrase, span in every._places(text):
                places[phrase] += 1
                right[phrase] += span in true
        return cls._of(
            {phrase: label for phrase, label in labels.items() if right[d := _digest(phrase)] >= _LEAST_PRECISION * places[d] > 0}
        )

    @classmethod
    def _of(cls, labels: dict[tuple[str, ...], int]) -> Dictionary:
        lengths: dict[str, set[int]] = {}
        for phrase in labels:
            lengths.setdefault(_digest(phrase[:1]), set()).add(len(phrase))
        longest_first = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        return cls({_digest(phrase): label for phrase, label in labels.items()}, longest_first)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the spans of each text."""
        return [[span for _, span in self._places(text)] for text in texts]

    def _places(self, text: str) -> list[tuple[str, Span]]:
        words, at, found = _words(text), 0, []
        while at < len(words):
            for length in self.lengths.get(_digest((words[at][0],)), ()):
                phrase = _digest([word for word, _, _ in words[at : at + length]])
                if at + length <= len(words) and phrase in self.phrases:
                    found.append((phrase, (words[at][1], words[at + length - 1][2], self.phrases[phrase])))
                    at += length
                    break
            else:
                at += 1
        return found

    def save(self, folder: Path) -> None:
        """Write `dictionary.json`."""
        (folder / "dictionary.json").write_text(json.dumps({"phrases": self.phrases, "lengths": self.lengths}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Dictionary:
        """Read what `save` wrote."""
        return cls(**json.loads((folder / "dictionary.json").read_text(encoding="utf-8")))


def _digest(words: Sequence[str]) -> str:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=12).hexdigest()


def _words(text: str) -> list[tuple[str, int, int]]:
    return [(match[0].casefold(), *match.span()) for match in _WORD.finditer(text)]


class TokenProbe:
    """Logistic regression on the base model's last hidden states of tokens: the backbone stays as it was."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray, coefficients: np.ndarray, intercept: np.ndarray):
        self.mean, self.scale, self.coefficients, self.intercept = mean, scale, coefficients, intercept

    @classmethod
    def fit(
        cls,
        backbone: PreTrainedModel,
        windows: Sequence[Sequence[Sequence[int]]],
        tags: Sequence[Sequence[Sequence[int]]],
        num_tags: int,
        *,
        seed: int = 0,
        progress: Listener | None = None,
    ) -> TokenProbe:
        """Fit on tokens of the training rows, drawn at random.

        Args:
            backbone: the base model.
            windows: each document's windows of token ids.
            tags: aligned with the windows, -100 where a token is not trained.
            num_tags: outputs.
            seed: of the draw.
            progress: told how many windows are done.
        """
        total = sum(tag != IGNORED for document in tags for window in document for tag in window)
        rng = np.random.default_rng(seed)
        states, targets = [], []
        for items, _, output in forward_batches(backbone, windows, progress):
            hidden = output.last_hidden_state.float().cpu().numpy()
            for at, (row, number) in enumerate(items):
                target = np.array(tags[row][number])
                chosen = (target != IGNORED) & (rng.random(len(target)) < _MOST_TOKENS / max(1, total))
                states.append(hidden[at, : len(target)][chosen])
                targets.append(target[chosen])
        features, target = np.concatenate(states), np.concatenate(targets)
        mean, scale = features.mean(0), features.std(0) + 1e-6
        coefficients, intercept = np.zeros((num_tags, features.shape[1])), np.full(num_tags, _NEVER)
        present = np.unique(target)
        if len(present) == 1:
            intercept[present] = 0.0
            return cls(mean, scale, coefficients, intercept)
        model = LogisticRegression(C=0.1, max_iter=200).fit((features - mean) / scale, target)
        if len(model.classes_) == 2:  # one row stands for both classes
            coefficients[model.classes_[1]], intercept[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
        else:
            coefficients[model.classes_], intercept[model.classes_] = model.coef_, model.intercept_
        return cls(mean, scale, coefficients, intercept)

    def scores(self, output: Any) -> torch.Tensor:
        """Return the scores [windows, tokens, tags] of the backbone's output."""
        hidden = output.last_hidden_state.float()
        mean, scale, coefficients, intercept = (
            torch.tensor(values, dtype=torch.float32, device=hidden.device)
            for values in (self.mean, self.scale, self.coefficients, self.intercept)
        )
        return (hidden - mean) / scale @ coefficients.T + intercept

    def save(self, folder: Path) -> None:
        """Write `token_probe.npz`."""
        np.savez(folder / "token_probe.npz", mean=self.mean, scale=self.scale, coefficients=self.coefficients, intercept=self.intercept)

    @classmethod
    def load(cls, folder: Path) -> TokenProbe:
        """Read what `save` wrote."""
        arrays = np.load(folder / "token_probe.npz")
        return cls(arrays["mean"], arrays["scale"], arrays["coefficients"], arrays["intercept"])


def load_backbone(base_model: ModelFolder, added_tokens: Sequence[str] = ()) -> PreTrainedModel:
    """Load the base model as it is before any training, with embeddings for added tokens."""
    model = loading.load(AutoModel, base_model, dtype=torch.float32)
    initialise_added(model, base_model, added_tokens)
    return model


#: Cheapest first.
NAMES = ("no_spans", "dictionary", "frozen_probe")


def find(
    name: str, folder: Path, base_model: ModelFolder, added_tokens: Sequence[str], reading: Reading, progress: Listener
) -> list[list[Span]]:
    """Return the spans that a cheaper way of a `cheaper_baselines` artifact finds.

    Args:
        name: one of NAMES.
        folder: of the artifact.
        base_model: a transformers folder.
        added_tokens: of the windows.
        reading: the texts, as the base model's tokenizer with the added tokens reads them.
        progress: told how far it is.
    """
    if name == "no_spans":
        return [[] for _ in reading.texts]
    if name == "dictionary":
        return Dictionary.load(folder).find(reading.texts)
    scores: Scores = TokenProbe.load(folder).scores
    return find_spans(load_backbone(base_model, added_tokens), reading, scores=scores, progress=progress)
