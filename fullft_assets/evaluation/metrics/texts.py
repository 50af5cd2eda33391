"""Metrics of tokens (how probable they were to a language model, and how many were predicted right), and of
the texts that a model writes: `truth` and `predicted` are lists of texts then, scores means over them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from fullft_assets.evaluation.metrics.base import Predictions, SummedMetric
from fullft_assets.snapshot.near_text.words import hash_words

_GENERATIVE = ("sft", "language_modeling")
#: Larger mean losses are as bad, and the variance of their exponential would not be a number.
_MAX_LOSS = 70.0


class _TokenMetric(SummedMetric):
    def mass(self, predictions: Predictions) -> np.ndarray:
        assert predictions.num_tokens is not None, "only what has tokens is measured"
        return predictions.num_tokens


class TokenProbability(_TokenMetric):
    """Geometric mean of the probabilities that the model gave the tokens: exp(-mean loss)."""

    name = "token_probability"
    title = "token probability"
    tasks = _GENERATIVE
    summed = ("loss", "num_tokens")

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return np.exp(-np.divide(*sums))


class Perplexity(_TokenMetric):
    """Inverse of the token probability: exp(mean loss)."""

    name = "perplexity"
    title = "perplexity"
    tasks = _GENERATIVE
    bounds = (1.0, None)
    summed = ("loss", "num_tokens")

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return perplexity(*sums)


class TokenAccuracy(_TokenMetric):
    """Share of tokens that were predicted right; a model with another tokenizer than the test set's
    has none.
    """

    name = "token_accuracy"
    title = "token accuracy"
    tasks = _GENERATIVE
    summed = ("num_right_tokens", "num_tokens")


def perplexity(loss: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return exp(loss / tokens), bounded so that it is finite."""
    return np.exp(np.minimum(loss / tokens, _MAX_LOSS))


TOKEN_PROBABILITY = TokenProbability()
PERPLEXITY = Perplexity()
TOKEN_ACCURACY = TokenAccuracy()


class _TextMetric(SummedMetric):
    tasks = ("sft",)
    of_answers = True

    def measures(self, predictions: Predictions) -> bool:
        texts: Any = predictions.predicted
        return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


class ExactMatch(_TextMetric):
    """Share of texts that are the true ones, whatever white space is between their words and around them."""

    name = "exact_match"
    title = "exact match"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        return _score_texts(lambda true, text: float(true.split() == text.split()), predictions)


class RougeL(_TextMetric):
    """Mean F1 of the longest common subsequence of words (Lin 2004, ROUGE: A Package for Automatic Evaluation
    of Summaries).

    Words are of any script, in lower case: the package `rouge-score` drops all but a to z and digits.
    """

    name = "rouge_l"
    title = "ROUGE-L"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        pairs = zip(_words(predictions.truth), _words(predictions.predicted), strict=True)
        f1 = [2 * LCSseq.similarity(true, text) / max(len(true) + len(text), 1) for true, text in pairs]
        return np.array(f1), np.ones(len(f1))


class ChrF(_TextMetric):
    """Mean F2 of n-grams of 1 to 6 characters (Popović 2015, chrF: character n-gram F-score for automatic MT
    evaluation), by sacrebleu.
    """

    name = "chrf"
    title = "chrF"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        from sacrebleu.metrics.chrf import CHRF

        metric = CHRF()
        return _score_texts(lambda true, text: metric.sentence_score(text, [true]).score / 100, predictions)


def _score_texts(score: Callable[[str, str], float], predictions: Predictions) -> tuple[np.ndarray, ...]:
    """Return the score of each text against the true one, and 1 for each: their sums' ratio is the mean."""
    scores = [score(true, text) for true, text in zip(predictions.truth, predictions.predicted, strict=True)]
    return np.array(scores), np.ones(len(scores))


def _words(texts: Sequence[str]) -> list[list[int]]:
    import pyarrow as pa

    words = hash_words(pa.array(texts, pa.string()))
    return [part.tolist() for part in np.split(words.hashes, np.cumsum(words.counts)[:-1])]


EXACT_MATCH = ExactMatch()
ROUGE_L = RougeL()
CHRF = ChrF()
