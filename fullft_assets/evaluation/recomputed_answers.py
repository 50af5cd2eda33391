"""The scores of written answers, computed a second time and otherwise than by the evaluation: see `verification`.

Of sacrebleu, which the evaluation counts n-grams with, only the words of BLEU are used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from fullft_assets.evaluation.recomputation import group_weights
from fullft_assets.snapshot.words import split_words

_CHRF_ORDER, _CHRF_BETA = 6, 2
_BLEU_ORDER = 4


def answer_score(metric: str, truth: Sequence[str], written: Sequence[str], groups: Sequence[str]) -> float | None:
    """Return a score with each group counted once; None: an added metric, which only its package can compute."""
    weights = group_weights(groups)
    if metric == "bleu":
        return _bleu(truth, written, weights)
    of_pair = {"exact_match": _is_exact, "rouge_l": _rouge_l, "chrf": _chrf}.get(metric)
    if of_pair is None:
        return None
    return float(np.average([of_pair(*pair) for pair in zip(truth, written, strict=True)], weights=weights))


def _is_exact(true: str, written: str) -> float:
    return float(" ".join(true.split()) == " ".join(written.split()))


def _rouge_l(true: str, written: str) -> float:
    ours, theirs = split_words(true), split_words(written)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        above = 0
        for place, other in enumerate(theirs, start=1):
            above, row[place] = row[place], above + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(ours) + len(theirs)) if ours or theirs else 0.0


def _chrf(true: str, written: str) -> float:
    ours, theirs = "".join(true.split()), "".join(written.split())
    shares = []
    for order in range(1, _CHRF_ORDER + 1):
        real, found = _ngrams(ours, order), _ngrams(theirs, order)
        if real and found:
            matching = (real & found).total()
            shares.append((matching / found.total(), matching / real.total()))
    if not shares:
        return 0.0
    precision, recall = np.mean(shares, axis=0)
    weight = _CHRF_BETA**2
    return float((1 + weight) * precision * recall / (weight * precision + recall)) if precision + recall else 0.0


def _bleu(truth: Sequence[str], written: Sequence[str], weights: np.ndarray) -> float:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    cut = Tokenizer13a()
    matching, total, lengths = np.zeros(_BLEU_ORDER), np.zeros(_BLEU_ORDER), np.zeros(2)
    for true, answer, weight in zip(truth, written, weights.tolist(), strict=True):
        ours, theirs = cut(true.rstrip()).split(), cut(answer.rstrip()).split()
        lengths += weight * np.array([len(theirs), len(ours)])
        for order in range(1, _BLEU_ORDER + 1):
            real, found = _ngrams(ours, order), _ngrams(theirs, order)
            matching[order - 1] += weight * (real & found).total()
            total[order - 1] += weight * found.total()
    if not matching.any() or not total.all():
        return 0.0
    missing, precisions = 0, []
    for found, of_all in zip(matching.tolist(), total.tolist(), strict=True):
        missing += not found
        precisions.append((found or 2.0**-missing) / of_all)
    num_written, num_true = lengths.tolist()
    return math.prod(precisions) ** (1 / _BLEU_ORDER) * min(1.0, math.exp(1 - num_true / num_written))


def _ngrams(items: Sequence[Hashable], order: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))
