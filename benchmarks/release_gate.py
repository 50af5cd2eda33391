"""How often intervals and the release gate are right: `python -m benchmarks.release_gate [--trials N]`, a
line of JSON each.

Coverage is counted on drawn test sets whose truth is known: scores and differences by labels, groups and kind
of error, and scores of documents of unequal length. Decisions are counted on real predictions: one recipe
(TF-IDF, 100 dimensions, a small neural network) is trained with 34 seeds on two public sets. Test groups are
drawn from those that no training saw, and what is true of a model is its score on all of them. A candidate is
then a twin (the same recipe, another seed), or a twin that was made better or worse; one of thirty equal
ones on the same test rows; or one of a row of retrains that each lose a little. The noise of seeds is the one
that a project assumes by default.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.split import SETS
from fullft_assets.evaluation import CHAMPION, FINETUNED, Comparison
from fullft_assets.evaluation.base import assumed_seed_noise
from fullft_assets.evaluation.comparison import justification, measurable_labels
from fullft_assets.evaluation.gates import BEATS_CHAMPION, ChampionRule, GateContext, GateResult
from fullft_assets.evaluation.intervals import Gain
from fullft_assets.evaluation.metrics.base import Predictions, by_group
from fullft_assets.evaluation.metrics.labels import ACCURACY, MACRO_F1
from fullft_assets.evaluation.resampling import measure, number_groups
from fullft_assets.evaluation.titles import ANCHOR
from fullft_assets.settings import EvaluationSettings, ReleaseSettings
from fullft_assets.tasks.classification.assessment import ClassificationEvaluation

DIAGNOSES = "diagnoses by chapter"
CONFIDENCE, RESAMPLES, NUM_RUNS = 0.95, 400, 34
#: Sets of two corpora that have enough rows for the largest test set; the second ones are in groups.
DECIDED = {"licence rules by kind": False, "Debian packages by section": True}
NUM_TEST_ROWS = (500, 2_000, 10_000)
#: Test groups that a detectable difference is measured on, and the number of test rows of their set.
NUM_GROUPS = {60: 500, 300: 500, 2_000: 2_000, 10_000: 10_000}
#: Rows that what is true of a model is measured on.
MOST_HELD_OUT = 16_000
MOST_TRAINED = 16_000


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
    test: TestSet,
    rows: np.ndarray,
    groups: list[str],
    systems: dict[str, np.ndarray],
    seed: int,
    baselines: Sequence[str] = (),
) -> ClassificationEvaluation:
    """Return what the gates read: macro-F1 of the first system on drawn rows, and its gains.

    Args:
        systems: the predicted labels of all rows, the candidate's first.
    """
    index, num_groups = number_groups(groups, len(rows))
    one_hot, weights = np.eye(test.num_labels), weights_of(np.array(groups))
    true, candidate = one_hot[test.labels[rows]], next(iter(systems))
    measurable = measurable_labels(true > 0, index, num_groups, weights)
    predictions = {
        name: Predictions(
            true_positives=true * one_hot[predicted[rows]],
            true=true,
            num_predicted=one_hot[predicted[rows]],
            weights=weights,
            measurable=measurable,
        )
        for name, predicted in systems.items()
    }
    options = {"confidence": CONFIDENCE, "seed": seed, "resamples": RESAMPLES // 2}
    measured = measure(MACRO_F1, predictions, index, reference=candidate, **options)
    return ClassificationEvaluation.model_construct(
        candidate=candidate,
        primary_metric="macro_f1",
        confidence=CONFIDENCE,
        num_test_rows=len(rows),
        num_test_groups=num_groups,
        effective_groups=measured.effective_groups,
        has_champion=CHAMPION in systems,
        baselines=list(baselines),
        scores={"macro_f1": measured.scores},
        gains={"macro_f1": measured.gains},
        justification=justification(
            measured.scores, measured.gains, baselines, metric="macro_f1", confidence=CONFIDENCE
        )
        if baselines
        else None,
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
        found[name] = Predictions(true_positives=right, true=true, num_predicted=given, is_right=right.sum(1))
        right, true, given = (table.sum(0, keepdims=True) for table in (right, true, given))
        totals[name] = Predictions(
            true_positives=right, true=true, num_predicted=given, is_right=right.sum(1) / len(sizes)
        )
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
    """A test set and the labels that trainings predict of its rows.

    Attributes:
        predicted: of trainings that differ in the seed alone.
        lengths: of the texts [n].
        num_train_rows: that each was trained on.
        num_drawn: test groups of a draw.
    """

    test: TestSet
    predicted: list[np.ndarray]
    lengths: np.ndarray
    num_train_rows: int
    num_drawn: int

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Draw test groups; see `TestSet.draw`."""
        return self.test.draw(rng, self.num_drawn)


@dataclass(frozen=True)
class Features:
    """A set that is split: TF-IDF of its texts (`train_texts`, `test_texts`), the same in 100 dimensions
    (`train_rows`, `test_rows`), and `labels` of the training rows.
    """

    test: TestSet
    labels: np.ndarray
    train_texts: Any
    test_texts: Any
    train_rows: np.ndarray
    test_rows: np.ndarray
    lengths: np.ndarray


@cache
def features(name: str, num_test_rows: int, is_grouped: bool = True) -> Features:
    """Split a set: five times as many training rows as are tested, as the default split has, and at most half
    of the set.

    Args:
        is_grouped: whether rows belong to the set's groups. False: each is a group of its own.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = list({row["text"]: row for row in _read(name)}.values())
    random.Random(3).shuffle(rows)
    groups = [row["group"] if is_grouped else f"{number:06}" for number, row in enumerate(rows)]
    names, group = np.unique(groups, return_inverse=True)
    is_trained = (np.random.default_rng(5).random(len(names)) < 0.5)[group]
    trained_on = np.flatnonzero(is_trained)[: min(5 * num_test_rows, MOST_TRAINED)]
    held_out = np.flatnonzero(~is_trained)[:MOST_HELD_OUT]
    labels = np.unique([row["label"] for row in rows], return_inverse=True)[1]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=30_000)
    train_texts = vectorizer.fit_transform([rows[row]["text"] for row in trained_on])
    test_texts = vectorizer.transform([rows[row]["text"] for row in held_out])
    reduction = TruncatedSVD(100, random_state=0).fit(train_texts)
    return Features(
        TestSet(labels[held_out], names[group[held_out]], int(labels.max()) + 1),
        labels[trained_on],
        train_texts,
        test_texts,
        reduction.transform(train_texts),
        reduction.transform(test_texts),
        np.array([len(rows[row]["text"]) for row in held_out]),
    )


@cache
def train(name: str, num_test_rows: int, num_runs: int = NUM_RUNS, is_grouped: bool = True) -> Trained:
    """Train a small neural network on a set (see `features`) with many seeds."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    split, predicted = features(name, num_test_rows, is_grouped), []
    for seed in range(num_runs):
        network = MLPClassifier((32,), max_iter=25, random_state=seed, learning_rate_init=0.01)
        with warnings.catch_warnings():
            # 25 passes are the recipe.
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(split.train_rows, split.labels)
        predicted.append(network.predict(split.test_rows))
    num_held_out, num_groups = len(split.lengths), len(np.unique(split.test.groups))
    num_drawn = round(num_test_rows * num_groups / num_held_out)
    return Trained(split.test, predicted, split.lengths, len(split.labels), num_drawn)


def _read(name: str) -> Sequence[Mapping[str, str]]:
    if name != DIAGNOSES:
        return SETS[name]()
    # Descriptions of ICD-10's codes; a code with its subcodes is a group.
    # It loads Dagster.
    from benchmarks import public_sets

    with tempfile.TemporaryDirectory() as folder:
        public_sets.diagnoses(Path(folder))
        lines = (Path(folder) / "codes.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [{"text": row["text"], "label": row["chapter"], "group": row["id"].split(".")[0]} for row in rows]


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
        labels = predicted.copy()
        labels[order[:count]] = replaced[:count]
        return labels

    def is_there(count: int) -> bool:
        return (test.truth(first(count), measurable) - aim) * gain >= 0

    return first(bisect_left(range(len(order)), True, key=is_there))


def judge(
    evaluation: ClassificationEvaluation, trained: Trained, rule: ChampionRule, look: int = 1
) -> GateResult:
    """Return what the gate says with the noise of seeds that is assumed by default."""
    noise = assumed_seed_noise(evaluation, trained.num_train_rows)
    return BEATS_CHAMPION.judge(GateContext(evaluation, ReleaseSettings(), rule, noise, look=look))


def claim(evaluation: ClassificationEvaluation, trained: Trained) -> Gain:
    """Return the gain over the champion with that noise."""
    gain, noise = evaluation.gain_over_champion, assumed_seed_noise(evaluation, trained.num_train_rows)
    assert gain is not None and noise is not None, "there is a champion"
    return gain.with_seed_noise(2 * noise.variance, noise.degrees_of_freedom, CONFIDENCE)


def decisions(trials: int) -> Iterator[dict[str, Any]]:
    """Yield, for each set, size and true gain, how often a candidate is called different, and promoted under
    each rule, against an exact test: one that knows how much twins differ by chance of rows and seeds.
    """
    for name, num_rows in product(DECIDED, NUM_TEST_ROWS):
        trained = train(name, num_rows, is_grouped=DECIDED[name])
        estimates: dict[float, np.ndarray] = {}
        for gain in (0.0, 0.02, -0.02):
            rng = np.random.default_rng([2, num_rows])
            gains, answers = [], []
            for _ in range(trials):
                evaluation = _pair(trained, rng, gain)
                gains.append(claim(evaluation, trained))
                answers.append([judge(evaluation, trained, rule).passed for rule in _RULES])
            estimates[gain] = np.array([each.estimate for each in gains])
            yield {
                "set": name,
                "test rows": num_rows,
                "training rows": trained.num_train_rows,
                "true gain": gain,
                "detectable": round(float(np.mean([each.detectable for each in gains])), 4),
                "called different": float(np.mean([each.low > 0 or each.high < 0 for each in gains])),
                **dict(zip(_RULES, np.mean(answers, axis=0).round(3).tolist(), strict=True)),
                "exact test": float(np.mean(estimates[gain] > np.quantile(estimates[0.0], 0.975))),
            }


def detectable(trials: int) -> Iterator[dict[str, Any]]:
    """Yield, for each set and number of test groups, how often a true difference of three quarters of the
    detectable one, of as much, and of five quarters is found: right within a quarter is at most .8 at the
    first and at least .8 at the last.
    """
    for name, (num_groups, num_rows) in product(DECIDED, NUM_GROUPS.items()):
        trained = train(name, num_rows, is_grouped=DECIDED[name])
        drawn = replace(trained, num_drawn=num_groups if num_groups < num_rows else trained.num_drawn)
        rng = np.random.default_rng([9, num_groups])
        twins = [claim(_pair(drawn, rng, 0.0), drawn).detectable for _ in range(trials // 2)]
        difference = float(np.mean(twins))
        everything = np.ones(drawn.test.num_labels, bool)
        # Of a good model only losses are as large on a small test set.
        is_gain = drawn.test.truth(drawn.predicted[0], everything) + 1.3 * difference < 1
        ends = {}
        for factor in (0.75, 1.0, 1.25):
            true = factor * difference * (1 if is_gain else -1)
            claims = (claim(_pair(drawn, rng, true), drawn) for _ in range(trials))
            ends[factor] = [found.low > 0 if is_gain else found.high < 0 for found in claims]
        yield {
            "set": name,
            "test groups": drawn.num_drawn,
            "is gain": is_gain,
            "detectable": round(difference, 4),
            **{f"found at {factor}": round(float(np.mean(found)), 3) for factor, found in ends.items()},
        }


_RULES: tuple[ChampionRule, ...] = ("superiority", "non_inferiority")


def _pair(trained: Trained, rng: np.random.Generator, gain: float) -> ClassificationEvaluation:
    """Compare two trainings that differ in the seed and, by `gain`, in truth."""
    candidate, champion = rng.choice(len(trained.predicted), 2, replace=False)
    rows, groups = trained.draw(rng)
    labels = trained.predicted[candidate]
    if gain:
        labels = changed(trained.test, labels, gain, rng, trained.test.measurable(rows, groups))
    systems = {FINETUNED: labels, CHAMPION: trained.predicted[champion]}
    return evaluate(trained.test, rows, groups, systems, int(rng.integers(2**31)))


def looks(trials: int, num_candidates: int = 30) -> Iterator[dict[str, Any]]:
    """Yield, for each set and size, in how many rows of equal candidates on one test set one or more is
    promoted as better than the first champion.
    """
    for name, num_rows in product(DECIDED, NUM_TEST_ROWS):
        trained, promoted = train(name, num_rows, is_grouped=DECIDED[name]), []
        for trial in range(trials):
            rng = np.random.default_rng([5, num_rows, trial])
            order, (rows, groups) = rng.permutation(len(trained.predicted)), trained.draw(rng)
            systems = {CHAMPION: trained.predicted[order[0]]} | {
                str(look): trained.predicted[place]
                for look, place in enumerate(order[1 : num_candidates + 1], start=1)
            }
            measured = evaluate(trained.test, rows, groups, systems, int(rng.integers(2**31)))
            # Measured from the champion's side, all at once.
            for look, gain in enumerate(measured.gains["macro_f1"].values(), start=1):
                of_candidate = gain.model_copy(
                    update={"estimate": -gain.estimate, "low": -gain.high, "high": -gain.low}
                )
                one = measured.model_copy(update={"gains": {"macro_f1": {CHAMPION: of_candidate}}})
                if judge(one, trained, "superiority", look).passed:
                    promoted.append(look)
                    break
        yield {
            "set": name,
            "test rows": num_rows,
            "rows of candidates": trials,
            "some promotion": round(len(promoted) / trials, 3),
        }


def erosion(trials: int, num_retrains: int = 12) -> Iterator[dict[str, Any]]:
    """Yield, for each set and size, where the champion ends after retrains in a row that are each .3 of the
    detectable difference below the present champion, which was promoted as 10 points better than the first.
    """
    for name, num_rows in product(DECIDED, NUM_TEST_ROWS[:2]):
        trained = train(name, num_rows, is_grouped=DECIDED[name])
        test, ends, promotions = trained.test, [], 0
        for trial in range(trials):
            rng = np.random.default_rng([4, num_rows, trial])
            order, (rows, groups) = rng.permutation(len(trained.predicted)), trained.draw(rng)
            measurable = test.measurable(rows, groups)
            start = champion = anchor = trained.predicted[order[0]]
            systems = {FINETUNED: trained.predicted[order[1]], CHAMPION: champion}
            detectable = claim(evaluate(test, rows, groups, systems, 0), trained).detectable
            for place in order[1 : num_retrains + 1]:
                loss = test.truth(champion, measurable) - 0.3 * detectable
                labels = trained.predicted[place]
                candidate = changed(test, labels, loss - test.truth(labels, measurable), rng, measurable)
                systems = {FINETUNED: candidate, CHAMPION: champion, ANCHOR: anchor}
                evaluation = evaluate(test, rows, groups, systems, int(rng.integers(2**31)))
                result = judge(evaluation, trained, "non_inferiority")
                if result.passed:
                    champion, promotions = candidate, promotions + 1
                    anchor = candidate if result.numbers["gain_low"] > 0 else anchor
            ends.append((test.truth(champion, measurable) - test.truth(start, measurable)) / detectable)
        yield {
            "set": name,
            "test rows": num_rows,
            "rows of retrains": trials,
            "promoted": round(promotions / trials / num_retrains, 3),
            "mean end": round(float(np.mean(ends)), 2),
            "worst end": round(min(ends), 2),
            "more than 1 below": float(np.mean(np.array(ends) < -1)),
        }


def main(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a line of JSON a cell."""
    measured = {
        "coverage": coverage,
        "token_coverage": token_coverage,
        "decisions": decisions,
        "detectable": detectable,
        "looks": looks,
        "erosion": erosion,
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
