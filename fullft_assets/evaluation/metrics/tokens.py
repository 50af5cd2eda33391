"""Metrics of tokens: how probable they were to a language model, and how many were predicted right."""

from __future__ import annotations

import math

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.metrics.base import Predictions, SummedMetric

_GENERATIVE = ("sft", "language_modeling")
#: Larger mean losses are as bad, and the variance of their exponential would not be a number.
_MAX_LOSS = 70.0


class _TokenMetric(SummedMetric):
    """A metric that counts tokens: a long row weighs more than a short one."""

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
        loss, tokens = sums
        return np.exp(-loss / tokens)


class Perplexity(_TokenMetric):
    """Inverse of the token probability: exp(mean loss)."""

    name = "perplexity"
    title = "perplexity"
    tasks = _GENERATIVE
    higher_is_better = False
    bounds = (1.0, None)
    summed = ("loss", "num_tokens")

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return perplexity(*sums)


class BitsPerByte(_TokenMetric):
    """Loss in bits for each byte of the text, whichever tokens it is cut into; lower is better."""

    name = "bits_per_byte"
    title = "bits per byte"
    tasks = _GENERATIVE
    higher_is_better = False
    bounds = (0.0, None)
    summed = ("loss", "num_bytes")

    def score(self, *sums: np.ndarray) -> np.ndarray:
        loss, num_bytes = sums
        return counts.ratio(loss / math.log(2), num_bytes)


class TokenAccuracy(_TokenMetric):
    """Share of tokens that were predicted right; a model with another tokenizer than the test set's
    has none.
    """

    name = "token_accuracy"
    title = "token accuracy"
    tasks = ("token_classification", *_GENERATIVE)
    summed = ("num_right_tokens", "num_tokens")

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return counts.ratio(*sums)


def perplexity(loss: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return exp(loss / tokens), bounded so that it is finite."""
    return np.exp(np.minimum(loss / tokens, _MAX_LOSS))


TOKEN_PROBABILITY = TokenProbability()
PERPLEXITY = Perplexity()
BITS_PER_BYTE = BitsPerByte()
TOKEN_ACCURACY = TokenAccuracy()
