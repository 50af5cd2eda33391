"""How often intervals and the release gate are right: `python -m benchmarks.release_gate [--trials N]`, a
line of JSON each.

Coverage is counted on drawn test sets whose truth is known: scores and differences by labels, groups and kind
of error, and scores of documents of unequal length. Decisions are counted on real predictions: one recipe
(TF-IDF, 100 dimensions, a small neural network) is trained with many seeds on three public sets: nearly
balanced, with a long tail of labels, with 22 labels; and on a tiny part of the first. Test groups are drawn
from those that no training saw, and what is true of a model is its score on all of them. A candidate is then
a twin (the same recipe, another seed) or a twin that was made better or worse by as much as the test set can
detect, and a row of retrains has such candidates one after the other. The seed noise comes from twelve
trainings that are not compared.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np

from benchmarks.split import SETS
from fullft_assets.evaluation import CHAMPION, FINETUNED, Comparison
from fullft_assets.evaluation.base import Run, SeedNoise, pooled
from fullft_assets.evaluation.comparison import measurable_labels
from fullft_assets.evaluation.intervals import Gain
from fullft_assets.evaluation.metrics.base import Predictions, by_group
from fullft_assets.evaluation.metrics.labels import ACCURACY, MACRO_F1
from fullft_assets.evaluation.resampling import measure, number_groups
from fullft_assets.evaluation.titles import ANCHOR
from fullft_assets.evaluation.verdict import ReleaseVerdict, verdict
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.classification.assessment import ClassificationEvaluation, assess

DIAGNOSES = "diagnoses by chapter"
CONFIDENCE, RESAMPLES, NUM_RUNS, NUM_SEED_RUNS = 0.95, 400, 40, 12
#: Name -> (set, rows, test groups of a draw).
REAL = {
    "licence rules by kind, balanced": ("licence rules by kind", 4_000, 300),
    "docstrings by package, long tail": ("docstrings by package", 4_000, 200),
    "diagnoses by chapter": (DIAGNOSES, 4_000, 300),
    "licence rules by kind, tiny": ("licence rules by kind", 700, 60),
}


@dataclass(frozen=True)
class TestSet:
    """Rows with their groups [n] and labels [n]."""

    labels: np.ndarray
    groups: np.ndarray
    num_labels: int

    def draw(self, rng: np.random.Generator, num_groups: int) -> tuple[np.ndarray, list[str]]:
        """Draw groups with replacement; return rows by position, and the group of each as drawn."""
        names, index = np.unique(self.groups, return_inverse=True)
        drawn = rng.integers(0, len(names), num_groups)
        rows = [np.flatnonzero(index == group) for group in drawn]
        return np.concatenate(rows), [f"{place:05}" for place, found in enumerate(rows) for _ in found]

    def measurable(self, rows: np.ndarray, groups: list[str]) -> np.ndarray:
        """Return which labels drawn rows can measure: what is decided is their macro-F1."""
        index, num_groups = number_groups(groups, len(rows))
        return measurable_labels(
            np.eye(self.num_labels, dtype=bool)[self.labels[rows]],
            index,
            num_groups,
            weights_of(np.array(groups)),
        )

    def truth(self, predicted: np.ndarray, measurable: np.ndarray) -> float:
        """Return macro-F1 over these labels on all rows, each group counting once."""
        weights = weights_of(self.groups)
        right = predicted == self.labels
        counted = (self.labels[right], weights[right]), (self.labels, weights), (predicted, weights)
        totals = (np.bincount(labels, weights, minlength=self.num_labels) for labels, weights in counted)
        return float(MACRO_F1.score(*(total[None, measurable] for total in totals))[0])

    def of_groups(self, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what macro-F1 sums of each group [groups, labels]: labels found, true and given."""
        index, num_groups = number_groups(self.groups.tolist(), len(self.groups))
        one_hot, weights = np.eye(self.num_labels), weights_of(self.groups)[:, None]
        true, given = one_hot[self.labels], one_hot[predicted]
        return tuple(by_group(table * weights, index, num_groups) for table in (true * given, true, given))


def weights_of(groups: np.ndarray) -> np.ndarray:
    """Return 1 / min(rows of the group, 10) for each row."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / np.minimum(sizes, 10)[index]


def evaluate(
    test: TestSet, rows: np.ndarray, groups: list[str], systems: dict[str, np.ndarray], seed: int
) -> ClassificationEvaluation:
    """Evaluate predicted labels of all rows on those drawn; `tfidf` is a baseline that is always wrong."""
    one_hot = np.eye(test.num_labels)
    wrong = (test.labels[rows] + 1) % test.num_labels
    probabilities = {name: one_hot[predicted[rows]] for name, predicted in systems.items()} | {
        "tfidf": one_hot[wrong]
    }
    comparison = Comparison(EvaluationSettings(), "macro_f1", seed, "classification", resamples=RESAMPLES)
    return assess(
        test.labels[rows], probabilities, groups, [str(label) for label in range(test.num_labels)], comparison
    )


# Coverage


def coverage(trials: int) -> Iterator[dict[str, Any]]:
    """Yield how often 95% intervals hold the truth, a cell each."""
    for num_labels, num_groups, tail, together in product(
        (2, 7, 22, 77), (40, 100, 300, 800), (False, True), (False, True)
    ):
        held: dict[str, list[bool]] = {"accuracy": [], "macro_f1": [], "difference": []}
        widths = []
        for trial in range(trials):
            found = _one_cell(
                np.random.default_rng([trial, num_labels, num_groups, tail, together]),
                num_labels,
                num_groups,
                tail,
                together,
            )
            if found is None:
                continue
            for name, is_held in found[0].items():
                held[name].append(is_held)
            widths.append(found[1])
        cell = {
            "labels": num_labels,
            "groups": num_groups,
            "long tail": tail,
            "groups err together": together,
        }
        measured = {name: round(float(np.mean(values)), 3) for name, values in held.items()} if widths else {}
        yield {
            **cell,
            "insufficient": trials - len(widths),
            **measured,
            "half width": round(float(np.mean(widths or [0])), 3),
        }


def _one_cell(
    rng: np.random.Generator, num_labels: int, num_groups: int, tail: bool, together: bool
) -> tuple[dict[str, bool], float] | None:
    """Return whether each interval holds the truth on one drawn test set, and the half width of macro-F1;
    None: insufficient data.
    """
    # One population for all trials of a cell.
    fixed = np.random.default_rng([num_labels, tail, together])
    shares = 1 / np.arange(1, num_labels + 1) if tail else np.ones(num_labels)
    shares /= shares.sum()
    skill = {FINETUNED: fixed.uniform(0.6, 0.95, num_labels)}
    skill[CHAMPION] = np.clip(skill[FINETUNED] - fixed.uniform(-0.05, 0.1, num_labels), 0.3, 0.99)
    population, totals = _population(
        np.random.default_rng([7, num_labels, tail, together]), 60_000, shares, skill, together
    )
    drawn = rng.choice(population[FINETUNED].num_rows, num_groups, replace=False)
    index, true = np.arange(num_groups), population[FINETUNED].take(drawn).true
    assert true is not None, "a population has labels"
    measurable = measurable_labels(true, index, num_groups, np.ones(num_groups))
    predictions = {
        name: replace(found.take(drawn), measurable=measurable) for name, found in population.items()
    }
    options = {
        "reference": FINETUNED,
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "seed": int(rng.integers(2**31)),
    }
    found = measure(MACRO_F1, predictions, index, rows_chose_labels=True, **options)
    if found.effective_groups < ReleaseSettings().min_effective_groups or not measurable.any():
        return None
    right = measure(ACCURACY, {FINETUNED: predictions[FINETUNED]}, index, **options).scores[FINETUNED]
    truth = {name: MACRO_F1.compute(replace(each, measurable=measurable)) for name, each in totals.items()}
    ours, gain = found.scores[FINETUNED], found.gains[CHAMPION]
    return {
        "accuracy": right.low <= ACCURACY.compute(totals[FINETUNED]) <= right.high,
        "macro_f1": ours.low <= truth[FINETUNED] <= ours.high,
        "difference": gain.low <= truth[FINETUNED] - truth[CHAMPION] <= gain.high,
    }, ours.half_width


_POPULATIONS: dict[tuple[Any, ...], tuple[dict[str, Predictions], dict[str, Predictions]]] = {}


def _population(
    rng: np.random.Generator, num_rows: int, shares: np.ndarray, skill: dict[str, np.ndarray], together: bool
) -> tuple[dict[str, Predictions], dict[str, Predictions]]:
    """Return what each system predicts of groups of 1 to 10 rows, a group's rows as one that counts 1, and of
    all groups as one row.

    They have one label nine times in ten, and err together or each alone.
    """
    key = (len(shares), float(shares[0]), together)
    if key in _POPULATIONS:
        return _POPULATIONS[key]
    sizes = rng.integers(1, 11, num_rows // 5)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    main = rng.choice(len(shares), len(sizes), p=shares)[groups]
    labels = np.where(rng.random(len(groups)) < 0.9, main, rng.choice(len(shares), len(groups), p=shares))
    # Part of the luck is common to all systems: a hard row is hard for both.
    luck_of_group, luck_of_row = rng.random(len(sizes))[groups], rng.random(len(groups))
    found, totals = {}, {}
    for name, of_labels in skill.items():
        own = rng.random(len(groups))
        luck = np.where(rng.random(len(groups)) < 0.7, luck_of_group if together else luck_of_row, own)
        other = rng.choice(len(shares), len(groups), p=shares)
        predicted = np.where(luck < of_labels[labels], labels, other)
        test = TestSet(labels, groups, len(shares))
        right, true, given = test.of_groups(predicted)
        found[name] = Predictions(found=right, true=true, given=given, is_right=right.sum(1))
        right, true, given = (table.sum(0, keepdims=True) for table in (right, true, given))
        totals[name] = Predictions(found=right, true=true, given=given, is_right=right.sum(1) / len(sizes))
    return _POPULATIONS.setdefault(key, (found, totals))


def token_coverage(trials: int) -> Iterator[dict[str, Any]]:
    """Yield how often intervals of token probability hold the truth, for documents of lognormal lengths."""
    for num_documents, sigma in product((50, 150, 600), (0.5, 1.0, 2.0)):
        held = {"score": [], "difference": []}
        for trial in range(trials):
            rng = np.random.default_rng([trial, num_documents, int(10 * sigma)])
            found, cap = _one_of_tokens(rng, num_documents, sigma)
            truth, gain = _true_tokens(sigma, cap)
            interval, difference = (
                found["scores"]["token_probability"][FINETUNED],
                found["gains"]["token_probability"][CHAMPION],
            )
            held["score"].append(interval.low <= truth <= interval.high)
            held["difference"].append(difference.low <= gain <= difference.high)
        yield {
            "documents": num_documents,
            "sigma": sigma,
            **{name: round(float(np.mean(values)), 3) for name, values in held.items()},
        }


def _documents(
    rng: np.random.Generator, num_documents: int, sigma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens, loss a token of the one and of the other system; long documents are easier."""
    tokens = np.maximum(1, np.exp(rng.normal(5, sigma, num_documents))).astype(int)
    ours = 3 - 0.15 * (np.log(tokens) - 5) + rng.normal(0, 0.5, num_documents)
    return tokens, ours, ours + rng.normal(0.05, 0.15, num_documents)


def _one_of_tokens(rng: np.random.Generator, num_documents: int, sigma: float) -> tuple[dict[str, Any], int]:
    tokens, ours, theirs = _documents(rng, num_documents, sigma)
    predictions = {
        name: Predictions(num_tokens=tokens, num_right_tokens=tokens, loss=loss * tokens)
        for name, loss in ((FINETUNED, ours), (CHAMPION, theirs), ("base_model", theirs + 1))
    }
    comparison = Comparison(
        EvaluationSettings(),
        "token_probability",
        int(rng.integers(2**31)),
        "language_modeling",
        resamples=RESAMPLES,
    )
    found = comparison.run(predictions, [str(number) for number in range(num_documents)], num_documents)
    return found, found["token_cap"]


@cache
def _all_documents(sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _documents(np.random.default_rng(11), 400_000, sigma)


def _true_tokens(sigma: float, cap: int) -> tuple[float, float]:
    tokens, ours, theirs = _all_documents(sigma)
    capped = np.minimum(tokens, cap)
    scores = [float(np.exp(-np.average(loss, weights=capped))) for loss in (ours, theirs)]
    return scores[0], scores[0] - scores[1]


# Decisions


@dataclass(frozen=True)
class Trained:
    """A test set with the lengths of its texts [n], and the predicted labels of each of many trainings that
    differ in the seed.
    """

    test: TestSet
    predicted: list[np.ndarray]
    lengths: np.ndarray

    @cached_property
    def of_groups(self) -> list[tuple[np.ndarray, ...]]:
        """What macro-F1 sums of each group, for each training."""
        return [self.test.of_groups(predicted) for predicted in self.predicted]


def train(name: str, num_rows: int, num_runs: int = NUM_RUNS) -> Trained:
    """Train a recipe with so many seeds on half of the groups."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neural_network import MLPClassifier

    unique = list({row["text"]: row for row in _read(name)}.values())
    rows = random.Random(3).sample(unique, min(num_rows, len(unique)))
    names = sorted({row["label"] for row in rows})
    labels, groups = (
        np.array([names.index(row["label"]) for row in rows]),
        np.array([row["group"] for row in rows]),
    )
    known = np.unique(groups)
    held_out = np.isin(groups, known[np.random.default_rng(5).random(len(known)) < 0.5])
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    texts = [row["text"] for row in rows]
    found: Any = vectorizer.fit(
        [text for text, out in zip(texts, held_out, strict=True) if not out]
    ).transform(texts)
    reduced: Any = TruncatedSVD(100, random_state=0).fit(found[~held_out]).transform(found)
    predicted = []
    for seed in range(num_runs):
        network = MLPClassifier((32,), max_iter=25, random_state=seed, learning_rate_init=0.01)
        with warnings.catch_warnings():
            # 25 passes are the recipe.
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(reduced[~held_out], labels[~held_out])
        predicted.append(network.predict(reduced[held_out]))
    lengths = np.array([len(text) for text in texts])
    return Trained(TestSet(labels[held_out], groups[held_out], len(names)), predicted, lengths[held_out])


def _read(name: str) -> Sequence[Mapping[str, str]]:
    if name == DIAGNOSES:
        from benchmarks.leakage import diagnoses

        return diagnoses()
    return SETS[name]()


def changed(
    test: TestSet, predicted: np.ndarray, gain: float, rng: np.random.Generator, measurable: np.ndarray
) -> np.ndarray:
    """Return predictions whose macro-F1 over these labels is higher by `gain` (or lower) on all rows: errors
    fixed, or made, at random.
    """
    aim, is_wrong = test.truth(predicted, measurable) + gain, predicted != test.labels
    order = rng.permutation(np.flatnonzero(is_wrong if gain > 0 else ~is_wrong))
    other = (test.labels[order] + rng.integers(1, test.num_labels, len(order))) % test.num_labels
    replaced = test.labels[order] if gain > 0 else other

    def first(count: int) -> np.ndarray:
        found = predicted.copy()
        found[order[:count]] = replaced[:count]
        return found

    def is_there(count: int) -> bool:
        return (test.truth(first(count), measurable) - aim) * gain >= 0

    return first(bisect_left(range(len(order)), True, key=is_there))


@dataclass(frozen=True)
class Decided:
    """What was decided on a candidate under each rule."""

    called_different: bool
    superior: bool
    not_inferior: bool
    detectable: float
    insufficient: bool


def decide(trained: Trained, rng: np.random.Generator, num_groups: int, gain: float) -> Decided:
    """Compare two trainings that differ in the seed and, by `gain`, in truth."""
    test, order = trained.test, rng.permutation(len(trained.predicted))
    ours, theirs, others = (
        trained.predicted[order[0]],
        trained.predicted[order[1]],
        order[2 : 2 + NUM_SEED_RUNS],
    )
    rows, groups = test.draw(rng, num_groups)
    ours = changed(test, ours, gain, rng, test.measurable(rows, groups)) if gain else ours
    noise = seed_noise_of(trained, others, rows, groups)
    found = evaluate(test, rows, groups, {FINETUNED: ours, CHAMPION: theirs}, int(rng.integers(2**31)))
    answers = {
        rule: _beats(verdict(found, ReleaseSettings(max_tolerable_loss=1), rule, seed_noise=noise))
        for rule in _RULES
    }
    claim = _claim(found.gain_over_champion, noise)
    insufficient = verdict(found, ReleaseSettings()).answer == "insufficient_data"
    return Decided(
        claim.low > 0 or claim.high < 0,
        answers["superiority"],
        answers["non_inferiority"],
        claim.detectable,
        insufficient,
    )


_RULES = ("superiority", "non_inferiority")


def seed_noise_of(
    trained: Trained, runs: np.ndarray, rows: np.ndarray, groups: list[str]
) -> SeedNoise | None:
    """Return the noise of seeds that trainings show on the drawn rows."""
    measurable = trained.test.measurable(rows, groups)
    numbers = np.unique(trained.test.groups, return_inverse=True)[1]
    drawn = numbers[rows][np.unique(groups, return_index=True)[1]]
    found = []
    for run in runs:
        sums = [table[drawn][:, measurable] for table in trained.of_groups[run]]
        totals = [table.sum(0, keepdims=True) for table in sums]
        score = float(MACRO_F1.score(*totals)[0])
        left_out = MACRO_F1.score(*(total - table for total, table in zip(totals, sums, strict=True)))
        found.append(Run(score=score, influences=(score - left_out).tolist()))
    return pooled([found])


def _claim(gain: Gain | None, noise: SeedNoise | None) -> Gain:
    assert gain is not None, "there is a champion"
    return (
        gain
        if noise is None
        else gain.with_seed_noise(2 * noise.variance, noise.degrees_of_freedom, CONFIDENCE)
    )


def _beats(found: ReleaseVerdict) -> bool:
    return next(reason for reason in found.reasons if reason.gate == "beats_champion").passed


def decisions(trials: int) -> Iterator[dict[str, Any]]:
    """Yield, for each set and true gain, how often a candidate is called different, and promoted under each
    rule.
    """
    for title, (name, num_rows, num_groups) in REAL.items():
        trained = train(name, num_rows)
        rng = np.random.default_rng(1)
        detectable = float(np.mean([decide(trained, rng, num_groups, 0).detectable for _ in range(20)]))
        for gain in (0.0, 1.0, 2.0, -1.0):
            rng = np.random.default_rng([2, int(10 * abs(gain))])
            found = [decide(trained, rng, num_groups, gain * detectable) for _ in range(trials)]
            shares = {
                field: round(float(np.mean([getattr(each, field) for each in found])), 3)
                for field in ("called_different", "superior", "not_inferior", "insufficient")
            }
            yield {
                "set": title,
                "groups": num_groups,
                "true gain in detectable differences": gain,
                "detectable": round(detectable, 4),
                **shares,
            }


def retrains(trials: int, num_retrains: int = 12) -> Iterator[dict[str, Any]]:
    """Yield, for each set, where the champion ends after retrains in a row under the default rule, in
    detectable differences of the first.

    Each candidate is a training of another seed, better or worse by so much more than the one before it.
    """
    for title, (name, num_rows, num_groups) in REAL.items():
        trained = train(name, num_rows)
        for step in (0.0, 0.3, -0.3):
            ends, promoted, detectable = [], 0, []
            for trial in range(trials):
                rng = np.random.default_rng([4, trial, int(10 * step) + 5])
                end, count, found = _row_of_retrains(trained, rng, num_retrains, step, num_groups)
                ends.append(end)
                promoted += count
                detectable.append(found)
            yield {
                "set": title,
                "rows of retrains": trials,
                "gain of each retrain": step,
                "detectable": round(float(np.mean(detectable)), 4),
                "promoted": round(promoted / trials / num_retrains, 3),
                "mean end": round(float(np.mean(ends)), 2),
                "worst end": round(min(ends), 2),
                "ends more than 1 below": float(np.mean(np.array(ends) < -1)),
            }


def _row_of_retrains(
    trained: Trained, rng: np.random.Generator, num_retrains: int, step: float, num_groups: int
) -> tuple[float, int, float]:
    """Return how much better than the first champion the last one is, in detectable differences; the
    promotions; that difference.
    """
    test, order = trained.test, rng.permutation(len(trained.predicted))
    rows, groups = test.draw(rng, num_groups)
    others, candidates = order[:NUM_SEED_RUNS], order[NUM_SEED_RUNS:]
    noise = seed_noise_of(trained, others, rows, groups)
    measurable = test.measurable(rows, groups)
    first = champion = trained.predicted[candidates[0]]
    twin = evaluate(test, rows, groups, {FINETUNED: trained.predicted[candidates[1]], CHAMPION: first}, 0)
    detectable, count = _claim(twin.gain_over_champion, noise).detectable, 0
    for number, place in zip(range(1, num_retrains + 1), candidates[1:], strict=False):
        candidate = trained.predicted[place]
        if step:
            candidate = changed(test, candidate, number * step * detectable, rng, measurable)
        systems = {FINETUNED: candidate, CHAMPION: champion, **({ANCHOR: first} if count else {})}
        found = evaluate(test, rows, groups, systems, int(rng.integers(2**31)))
        if _beats(verdict(found, ReleaseSettings(max_tolerable_loss=1), "non_inferiority", noise)):
            champion, count = candidate, count + 1
    return (test.truth(champion, measurable) - test.truth(first, measurable)) / detectable, count, detectable


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a cell."""
    measured = {
        "coverage": coverage,
        "token_coverage": token_coverage,
        "decisions": decisions,
        "retrains": retrains,
    }
    return measure_parts(arguments, measured, trials=200, about=__doc__)


def measure_parts(
    arguments: Sequence[str],
    measured: Mapping[str, Callable[[int], Iterable[dict[str, Any]]]],
    *,
    trials: int,
    about: str | None,
) -> Iterator[str]:
    """Yield a line of JSON for each row of the parts that a command line names, by default all of them."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--parts", nargs="*", default=list(measured), choices=list(measured))
    given = parser.parse_args(arguments)
    for part in given.parts:
        for row in measured[part](given.trials):
            yield json.dumps({"part": part, **row})


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line, flush=True)
