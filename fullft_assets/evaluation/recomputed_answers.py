"""The scores of written answers, computed a second time and otherwise than by the evaluation: see
`verification`.

Of sacrebleu, which the evaluation counts n-grams with, only the words of BLEU are used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fullft_assets.evaluation.recomputation import (
    FINETUNED,
    Asked,
    Tree,
    drawn_rows,
    effective_groups,
    group_weights,
    mean_of,
)
from fullft_assets.evaluation.recomputed_intervals import SummedScore
from fullft_assets.snapshot.words import split_words

_CHRF_ORDER, _CHRF_BETA = 6, 2
_BLEU_ORDER = 4
#: Sums without a group leave rounding, not 0.
_ROUNDING = 1e-9


def answer_sums(
    metric: str, truth: Sequence[str], written: Sequence[str], groups: Sequence[str]
) -> SummedScore | None:
    """Return what is summed for a score, with each group counted once: of each answer its own, or its
    n-grams. None: a metric of another package.
    """
    weights = group_weights(groups)
    if metric == "bleu":
        return SummedScore(_ngram_counts(truth, written) * weights[:, None], _bleu)
    of_pair = {"exact_match": _is_exact, "rouge_l": _rouge_l, "chrf": _chrf}.get(metric)
    return (
        None
        if of_pair is None
        else mean_of([of_pair(*pair) for pair in zip(truth, written, strict=True)], weights)
    )


def answer_fields(
    stored: Mapping[str, Any],
    rows: Sequence[Mapping[str, str]],
    truth: Sequence[str],
    groups: Sequence[str],
    asked: Asked,
) -> Tree:
    """Return the scores of written answers; without those of added metrics.

    Args:
        stored: the field `answers` of evaluation.json, for the names of the metrics and systems.
        rows: of answers.jsonl, and the held-out answers and groups of the snapshot [n].
    """
    effective, sampling = effective_groups(group_weights(groups), groups), asked.sampling(groups)
    tree: Tree = {
        "num_answers": len(rows),
        "num_groups": len(set(groups)),
        "effective_groups": effective,
        "scores": {},
        "gains": {},
    }
    for metric, systems in stored["scores"].items():
        found = {
            system: answer_sums(metric, truth, [row[system] for row in rows], groups) for system in systems
        }
        pairs = {system: (sums.score, sums) for system, sums in found.items() if sums is not None}
        if pairs:
            tree["scores"][metric], tree["gains"][metric] = sampling.measured(
                metric, pairs, FINETUNED, effective
            )
    return tree


def drawn_answers(
    conversations: Sequence[Sequence[Mapping[str, str]]],
    groups: Sequence[str],
    asked: Asked,
    length_of: Callable[[str], int],
) -> tuple[list[int], Tree]:
    """Return the rows whose answers are drawn, and how many were too long, and how long an answer may be.

    Args:
        length_of: returns the number of a text's tokens.
    """
    most, limit = asked.settings["generated_answers"], asked.settings["answer_tokens"]
    chosen, longest, num_too_long = [], 0, 0
    for row in drawn_rows(groups, asked.seed):
        if len(chosen) == most:
            break
        answers = [place for place, turn in enumerate(conversations[row]) if turn["role"] == "assistant"]
        if not answers or not answers[-1]:
            continue
        length = length_of(conversations[row][answers[-1]]["content"])
        if length > limit:
            num_too_long += 1
        else:
            chosen.append(row)
            longest = max(longest, length)
    return chosen, {"num_too_long": num_too_long, "max_new_tokens": max(1, min(limit, 2 * longest))}


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
    return (
        float((1 + weight) * precision * recall / (weight * precision + recall))
        if precision + recall
        else 0.0
    )


def _ngram_counts(truth: Sequence[str], written: Sequence[str]) -> np.ndarray:
    """Return matching and written n-grams of 1 to 4 words, and the words written and true [n, 10]."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    cut, counts = Tokenizer13a(), []
    for true, answer in zip(truth, written, strict=True):
        ours, theirs = cut(true.rstrip()).split(), cut(answer.rstrip()).split()
        pairs = [(_ngrams(ours, order), _ngrams(theirs, order)) for order in range(1, _BLEU_ORDER + 1)]
        matching, total = (
            [(real & found).total() for real, found in pairs],
            [found.total() for _, found in pairs],
        )
        counts.append([*matching, *total, len(theirs), len(ours)])
    return np.array(counts, np.float64)


def _bleu(sums: np.ndarray) -> np.ndarray:
    return np.array([_bleu_of(each) for each in sums.tolist()])


def _bleu_of(sums: Sequence[float]) -> float:
    matching, total, (num_written, num_true) = sums[:_BLEU_ORDER], sums[_BLEU_ORDER:-2], sums[-2:]
    if max(matching) <= _ROUNDING or min(total) <= _ROUNDING:
        return 0.0
    missing, precisions = 0, []
    for found, of_all in zip(matching, total, strict=True):
        missing += found <= _ROUNDING
        precisions.append((2.0**-missing if found <= _ROUNDING else found) / of_all)
    return min(
        1.0, math.prod(precisions) ** (1 / _BLEU_ORDER) * min(1.0, math.exp(1 - num_true / num_written))
    )


def _ngrams(items: Sequence[Hashable], order: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))
