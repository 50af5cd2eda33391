"""Metrics of the texts that a model writes, against what really follows: `truth` and `predicted` are lists of
texts.

Exact match, ROUGE-L and chrF are means over the texts; BLEU is a function of n-gram counts summed over all of
them, as its authors define it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fullft_assets.evaluation import counts
from fullft_assets.evaluation.metrics.base import Predictions, SummedMetric
from fullft_assets.snapshot.near_text.words import hash_words

_MAX_ORDER = 4
#: Sums of weights without a group leave rounding, not 0.
_ROUNDING = 1e-9


class _TextMetric(SummedMetric):
    """The weighted mean of a number of each text."""

    tasks = ("sft",)
    of_answers = True

    def measures(self, predictions: Predictions) -> bool:
        texts: Any = predictions.predicted
        return isinstance(texts, list) and all(isinstance(text, str) for text in texts)

    def score(self, *sums: np.ndarray) -> np.ndarray:
        return counts.ratio(*sums)


class ExactMatch(_TextMetric):
    """Share of texts that are the true ones, whatever white space is between their words and around them."""

    name, title = "exact_match", "exact match"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        return _each(lambda true, written: float(true.split() == written.split()), predictions)


class RougeL(_TextMetric):
    """Mean F1 of the longest common subsequence of words (Lin 2004, ROUGE: A Package for Automatic Evaluation
    of Summaries).

    Words are of any script, in lower case: the package `rouge-score` drops all but a to z and digits.
    """

    name, title = "rouge_l", "ROUGE-L"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        true, written = _words(predictions.truth), _words(predictions.predicted)
        f1 = [
            2 * common_subsequence(true_words, written_words) / max(len(true_words) + len(written_words), 1)
            for true_words, written_words in zip(true, written, strict=True)
        ]
        return np.array(f1), np.ones(len(f1))


class ChrF(_TextMetric):
    """Mean F2 of n-grams of 1 to 6 characters (Popović 2015, chrF: character n-gram F-score for automatic MT
    evaluation), by sacrebleu.
    """

    name, title = "chrf", "chrF"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        from sacrebleu.metrics.chrf import CHRF

        metric = CHRF()
        return _each(lambda true, written: metric.sentence_score(written, [true]).score / 100, predictions)


class Bleu(_TextMetric):
    """BLEU of n-grams of 1 to 4 words, with sacrebleu's words and smoothing (Papineni et al. 2002; Post 2018,
    arXiv:1804.08771).
    """

    name, title = "bleu", "BLEU"

    def count(self, predictions: Predictions) -> tuple[np.ndarray, ...]:
        """Return matching n-grams and n-grams written, of each length [n, 4] each, and words written and true
        [n].
        """
        from sacrebleu.metrics.bleu import BLEU

        # Smoothing is of the sums, not of each text.
        metric = BLEU(smooth_method="none", effective_order=True)
        texts = zip(predictions.truth, predictions.predicted, strict=True)
        scores = [metric.sentence_score(written, [true]) for true, written in texts]
        return (
            np.array([each.counts for each in scores]),
            np.array([each.totals for each in scores]),
            np.array([each.sys_len for each in scores]),
            np.array([each.ref_len for each in scores]),
        )

    def score(self, *sums: np.ndarray) -> np.ndarray:
        matching, written, num_written, num_true = sums
        # A length without a match counts as half a match, the next such length as a quarter (sacrebleu's
        # `exp`).
        none = matching <= _ROUNDING
        smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=1), matching)
        precision = counts.ratio(smoothed, written)
        is_zero = none.all(1) | (written <= _ROUNDING).any(1)
        mean = np.exp(np.log(np.where(precision > 0, precision, 1.0)).sum(1) / _MAX_ORDER)
        brevity = np.exp(np.minimum(0.0, 1 - counts.ratio(num_true, num_written)))
        return np.where(is_zero, 0.0, np.minimum(mean * brevity, 1.0))


def common_subsequence(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common subsequence, 64 words at a time (Hyyrö 2004, Bit-parallel
    LCS-length computation revisited).
    """
    places: dict[int, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    all_bits = (1 << len(one)) - 1
    unmatched = all_bits
    for word in other:
        matched = unmatched & places.get(word, 0)
        unmatched = ((unmatched + matched) | (unmatched - matched)) & all_bits
    return len(one) - unmatched.bit_count()


def _each(score: Callable[[str, str], float], predictions: Predictions) -> tuple[np.ndarray, ...]:
    """Return the score of each pair of a true and a written text, and 1 [n] each."""
    scores = [
        score(true, written) for true, written in zip(predictions.truth, predictions.predicted, strict=True)
    ]
    return np.array(scores), np.ones(len(scores))


def _words(texts: Sequence[str]) -> list[list[int]]:
    """Return the hashes of each text's words."""
    import pyarrow as pa

    words = hash_words(pa.array(texts, pa.string()))
    return [part.tolist() for part in np.split(words.hashes, np.cumsum(words.counts)[:-1])]


EXACT_MATCH = ExactMatch()
ROUGE_L = RougeL()
CHRF = ChrF()
BLEU = Bleu()
