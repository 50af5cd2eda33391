"""Statistics of the evaluation of classifiers against scikit-learn, a slow reference and known coverage."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import t as student
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from fullft_assets.evaluation import FINETUNED, Comparison, Interval, comparison, read_evaluation, resampling
from fullft_assets.evaluation.base import Run, label_scores, pooled
from fullft_assets.evaluation.intervals import Gain, bounded_interval, effective_number, holm
from fullft_assets.evaluation.metrics.base import Predictions
from fullft_assets.settings import EvaluationSettings
from fullft_assets.task import METRICS
from fullft_assets.tasks.classification import assessment as evaluation

pytestmark = pytest.mark.quick

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@pytest.mark.heavy
@settings(max_examples=60, deadline=None)
@given(rows)
def test_the_table_of_labels_equals_sklearn(pairs):
    labels, predicted = np.array(pairs).T
    matrix = confusion_matrix(labels, predicted, labels=range(5))
    table = label_scores(np.diag(matrix), matrix.sum(1), matrix.sum(0), list("abcde"))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    scores = np.array([(row.precision, row.recall, row.f1, row.support) for row in table]).T
    assert scores == pytest.approx(np.array(expected))


def test_calibration_error_of_known_bins():
    labels = np.array([0] * 8 + [1] * 2 + [0] * 5 + [1] * 5)
    # Ten rows at 0.88 of which 8 are right, ten at 0.52 of which 5 are right.
    bins = evaluation.reliability(labels, np.array([[0.88, 0.12]] * 10 + [[0.52, 0.48]] * 10))
    assert [(b.num_rows, round(b.confidence, 6), b.accuracy) for b in bins] == [
        (10, 0.52, 0.5),
        (10, 0.88, 0.8),
    ]
    assert [(b.low, b.high) for b in bins] == [(0.5, 0.6), (0.8, 0.9)]
    assert evaluation.expected_calibration_error(bins) == pytest.approx(0.5 * 0.08 + 0.5 * 0.02)


def clustered(
    rng: np.random.Generator, num_groups: int, rows_a_group: int
) -> tuple[np.ndarray, dict, list[str]]:
    """Three labels; a group's rows share the label, and err together nine times in ten."""
    group = np.repeat(np.arange(num_groups), rows_a_group)
    labels = rng.integers(0, 3, num_groups)[group]
    predictions = {}
    for name, share in (("finetuned", 0.8), ("other", 0.7)):
        together = (rng.random(num_groups) < share)[group]
        alone = rng.random(len(group)) < share
        right = np.where(rng.random(len(group)) < 0.9, together, alone)
        predictions[name] = np.where(right, labels, (labels + 1) % 3)
    return labels, predictions, [f"g{g}" for g in group]


def predictions_of(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> Predictions:
    return evaluation.predictions_of(
        labels, np.eye(num_labels)[predicted], [str(label) for label in range(num_labels)]
    )


def measured(labels, predictions, groups, *, metric: str, **options) -> resampling.SystemScores:
    counted = {name: predictions_of(labels, predicted, 3) for name, predicted in predictions.items()}
    index, _ = resampling.number_groups(groups, len(labels))
    return resampling.measure(METRICS.get(metric), counted, index, **options)


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


@pytest.mark.heavy
@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_intervals_equal_a_slow_reference(metric):
    labels, predictions, groups = clustered(np.random.default_rng(5), 23, 4)
    options = {"metric": metric, "reference": "finetuned", "resamples": 200, "confidence": 0.9, "seed": 11}
    found = measured(labels, predictions, groups, **options)

    def score(picked: np.ndarray, name: str) -> float:
        truth, answer = labels[picked], predictions[name][picked]
        return (
            accuracy_score(truth, answer)
            if metric == "accuracy"
            else f1_score(truth, answer, labels=np.unique(truth), average="macro", zero_division=0)
        )

    names = np.unique(groups)
    rows_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    drawn = np.random.default_rng(11).integers(0, len(names), (200, len(names)))
    draws = {name: [] for name in predictions}
    for resample in drawn:
        picked = np.concatenate([rows_of[names[g]] for g in resample])
        for name in predictions:
            draws[name].append(score(picked, name))
    everything = np.arange(len(labels))
    without = {
        name: np.array([score(np.setdiff1d(everything, rows), name) for rows in rows_of.values()])
        for name in predictions
    }
    for name in predictions:
        estimate = score(everything, name)
        influence = without[name] - without[name].mean()
        jackknife = np.sqrt(22 / 23 * (influence**2).sum())
        error = np.hypot(max(np.std(draws[name], ddof=1), jackknife), np.mean(draws[name]) - estimate)
        freedom = min(
            22, 2 * (influence**2).sum() ** 2 / ((influence**4).sum() - (influence**2).sum() ** 2 / 23)
        )
        reach = student.ppf(0.95, freedom) * error / (estimate * (1 - estimate))
        low, high = (
            1 / (1 + np.exp(-(np.log(estimate / (1 - estimate)) + side * reach))) for side in (-1, 1)
        )
        assert ends(found.scores[name]) == pytest.approx((estimate, low, high))
    error = np.std(np.subtract(draws["finetuned"], draws["other"]), ddof=1)
    estimate, reach = (
        score(everything, "finetuned") - score(everything, "other"),
        student.ppf(0.95, 22) * error,
    )
    gain = found.gains["other"]
    assert ends(gain) == pytest.approx((estimate, estimate - reach, estimate + reach))
    assert gain.p_value_against(0.0) == pytest.approx(2 * student.sf(abs(estimate) / error, 22))
    quantiles = student.ppf(0.95, 22) + student.ppf(0.8, 22)
    num_right = {
        name: [int((predictions[name] == labels)[rows].sum()) for rows in rows_of.values()]
        for name in predictions
    }
    differs = np.not_equal(num_right["finetuned"], num_right["other"])
    moved = (estimate - (without["finetuned"] - without["other"]))[differs]
    step = np.sum(np.square(moved)) / np.abs(moved).sum()
    assert gain.detectable**2 == pytest.approx(quantiles**2 * (error**2 + step * gain.detectable))
    assert found.effective_groups == pytest.approx(23)


def test_a_lower_end_is_lower_by_what_the_choice_of_labels_adds():
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 25, 100)
    predicted = np.where(rng.random(100) < 0.7, labels, rng.integers(0, 25, 100))
    groups, counted = np.arange(100), predictions_of(labels, predicted, 25)
    measurable = comparison.measurable_labels(counted.true, groups, 100, np.ones(100))
    assert 0 < measurable.sum() < 25
    options = {
        "reference": "finetuned",
        "resamples": 300,
        "confidence": 0.95,
        "seed": 3,
        "rows_chose_labels": True,
    }
    systems = {"finetuned": replace(counted, measurable=measurable)}
    found = resampling.measure(METRICS.get("macro_f1"), systems, groups, **options).scores["finetuned"]

    def score(rows: np.ndarray, chosen: np.ndarray) -> float:
        occurring = np.intersect1d(np.flatnonzero(chosen), labels[rows])
        return f1_score(labels[rows], predicted[rows], labels=occurring, average="macro", zero_division=0)

    draws, raised = [], []
    for drawn in np.random.default_rng(3).integers(0, 100, (300, 100)):
        # A group that is drawn twice is two groups.
        chosen = np.bincount(labels[drawn], minlength=25) >= 5
        raised.append(score(drawn, chosen) - score(groups, chosen))
        draws.append(score(drawn, measurable))
    without = np.array([score(np.delete(groups, group), measurable) for group in groups])
    squares = (without - without.mean()) ** 2
    error = max(np.std(draws, ddof=1), np.sqrt(0.99 * squares.sum()))
    freedom = min(99, 2 * squares.sum() ** 2 / ((squares**2).sum() - squares.sum() ** 2 / 100))
    expected = bounded_interval(found.estimate, error, freedom, 0.95, (0.0, 1.0))
    assert np.mean(raised) > 0.005
    assert ends(found) == pytest.approx(
        (score(groups, measurable), expected.low - np.mean(raised), expected.high)
    )


def test_resamples_do_not_depend_on_the_chunks(monkeypatch):
    labels, predictions, groups = clustered(np.random.default_rng(6), 37, 3)
    options = {
        "metric": "macro_f1",
        "reference": "finetuned",
        "resamples": 150,
        "confidence": 0.95,
        "seed": 1,
    }
    whole = measured(labels, predictions, groups, **options)
    monkeypatch.setattr(resampling, "_CHUNK_NUMBERS", 37 * 7)
    assert measured(labels, predictions, groups, **options) == whole
    assert measured(labels, predictions, groups, **{**options, "seed": 2}) != whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["a", "b"]}, "groups: 2 for 3 rows"),
        ({"groups": ["a", "a", "a"]}, "all rows belong to one group"),
        ({"reference": "tuned"}, "reference `tuned` is not among"),
    ],
)
def test_bad_input_is_named(change, message):
    given_input = {
        "labels": np.array([0, 1, 1]),
        "predictions": {"finetuned": np.array([0, 1, 1])},
        "groups": ["a", "b", "c"],
        "metric": "macro_f1",
        "reference": "finetuned",
        "resamples": 100,
        "confidence": 0.95,
        "seed": 0,
    } | change
    with pytest.raises(ValueError, match=message):
        measured(**given_input)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, np.nan], [1, 0]], [0, 1], "tfidf: row 0 is not a distribution"),
        ([[0.5, 0.5], [0.9, 0.9]], [0, 1], "tfidf: row 1 is not a distribution"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 1], "tfidf: row 1 is not a distribution"),
        ([[0.5, 0.5]], [0, 1], r"tfidf: shape \(1, 2\) for 2 labels"),
        ([0.5, 0.5], [0, 1], r"tfidf: shape \(2,\) for 2 labels"),
        ([[0.2, 0.2, 0.6]] * 2, [0, 1], "tfidf: 3 columns for 2 labels"),
    ],
)
def test_bad_probabilities_are_named(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluation.predictions_of(np.array(labels), np.array(probabilities), ["a", "b"], "tfidf")


def probabilities_of(predicted: np.ndarray, num_labels: int) -> np.ndarray:
    return np.eye(num_labels)[predicted] * 0.9 + 0.1 / num_labels


def assessed(finetuned: float, baseline: float, n: int = 900) -> evaluation.ClassificationEvaluation:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, n)
    systems = {FINETUNED: finetuned, "majority": 0.35, "tfidf": baseline}
    probabilities = {
        name: probabilities_of(np.where(rng.random(n) < share, labels, (labels + 1) % 3), 3)
        for name, share in systems.items()
    }
    groups = [f"g{i}" for i in rng.integers(0, n // 3, n)]
    return evaluation.assess(
        labels,
        probabilities,
        groups,
        ["a", "b", "c"],
        Comparison(EvaluationSettings(), "macro_f1", seed=1, task="classification"),
    )


def test_assess_agrees_with_itself_and_survives_json():
    found = assessed(0.9, 0.8)
    assert found.score.estimate == found.scores["macro_f1"]["finetuned"].estimate
    assert found.score.low < found.score.estimate < found.score.high
    assert np.array(found.confusion).sum() == found.num_test_rows == 900
    assert sum(row.support for row in found.per_label) == 900
    # A group counts as one, whatever its rows.
    assert found.scores["accuracy"]["finetuned"].estimate == pytest.approx(
        np.trace(found.confusion) / 900, abs=0.01
    )
    assert found.gain_over_champion is None and found.baselines == ["majority", "tfidf"]
    assert read_evaluation(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("finetuned", "baseline", "justified", "opening"),
    [
        (0.9, 0.7, True, "Full fine-tuning was worth it:"),
        (0.8, 0.8, False, "Full fine-tuning is not shown to be worth it"),
        (0.6, 0.8, False, "Full fine-tuning was not worth it, a baseline is better"),
    ],
)
def test_justification_says_which_way_it_went(finetuned, baseline, justified, opening):
    found = assessed(finetuned, baseline).justification
    assert (found.justified, found.best_baseline) == (justified, "tfidf")
    assert found.sentence.startswith(opening) and "TF-IDF + logistic regression" in found.sentence


@pytest.mark.parametrize(("num_differing", "excludes_zero"), [(5, False), (6, True), (None, True)])
def test_a_gain_that_few_groups_show_is_none(num_differing, excludes_zero):
    gain = Gain.of(0.05, 0.01, 199, 0.95, None if num_differing is None else np.full(num_differing, 0.01))
    assert (gain.low > 0) is excludes_zero and gain.low <= 0.05 - 0.0195


def test_what_is_detectable_counts_the_groups_that_a_difference_adds() -> None:
    """By hand: with normal quantiles q = 1.960 + .842 = 2.802, so d^2 = 7.849 (.01^2 + .005 d), and .005 is
    (16 + 36) / (4 + 6) thousandths.
    """
    gain = Gain.of(0.0, 0.01, 1e9, 0.95, np.repeat([0.004, -0.006], 3))
    assert gain.least_detectable == pytest.approx(7.849 * 0.0052, rel=1e-3)
    assert gain.detectable == pytest.approx((0.040815 + (0.040815**2 + 4 * 7.849e-4) ** 0.5) / 2, rel=1e-3)
    # Not known which groups differ: their spread stays as it is.
    assert Gain.of(0.0, 0.01, 1e9, 0.95).detectable == pytest.approx(0.02802, rel=1e-3)


@pytest.mark.parametrize("num_differing", [0, 6, 12, 30])
def test_a_detectable_gain_is_found_and_such_a_loss_is_not_excluded(num_differing: int) -> None:
    """Two systems differ, evenly, on so many of 60 groups; a gain of d adds 60 d others on which the better
    one is right.
    """
    rng = np.random.default_rng(0)

    def compared(differences: np.ndarray) -> Gain:
        error = float(differences.std() / np.sqrt(60))
        return Gain.of(differences.mean(), error, 59, 0.95, differences[differences != 0] / 60)

    def drawn(gain: float) -> Gain:
        even = num_differing / 120
        shares = [max(0.0, -gain), even, 1 - 2 * even - abs(gain), even, max(0.0, gain)]
        return compared(rng.choice([-1.0, -1.0, 0.0, 1.0, 1.0], 60, p=shares))

    detectable = compared(np.resize([1.0, -1.0], 60) * (np.arange(60) < num_differing)).detectable
    assert 0.74 < np.mean([drawn(detectable).low > 0 for _ in range(500)]) < 0.96
    assert np.mean([drawn(-detectable).excludes_loss(detectable, 0.95) for _ in range(500)]) < 0.05


def test_a_claim_on_recipes_is_no_surer_than_one_on_their_models() -> None:
    gain = Gain.of(0.02, 0.01, 59, 0.95, np.full(3, 0.007))
    claim = gain.with_seed_noise(1e-12, 11, 0.95)
    assert (claim.low, claim.high, claim.detectable) == pytest.approx(
        (gain.low, gain.high, gain.detectable), rel=1e-3
    )
    assert gain.with_seed_noise(1e-4, 11, 0.95).detectable > gain.detectable


def test_seeds_add_their_variance_to_what_is_detectable() -> None:
    """By hand: many degrees of freedom, d^2 = 7.849 (.01^2 + .01^2 + .005 d)."""
    claim = Gain.of(0.0, 0.01, 1e9, 0.95, np.full(6, 0.005)).with_seed_noise(1e-4, 1e9, 0.95)
    assert claim.detectable**2 == pytest.approx(7.849 * (2e-4 + 0.005 * claim.detectable), rel=1e-3)


def test_equal_predictions_differ_by_less_than_the_groups_can_show():
    labels = np.arange(200) % 2
    found = measured(
        labels,
        {"finetuned": labels, "other": labels},
        [str(n) for n in range(200)],
        metric="accuracy",
        reference="finetuned",
        resamples=100,
        confidence=0.95,
        seed=0,
    ).gains["other"]
    assert ends(found) == pytest.approx((0, -(1 - 0.025 ** (1 / 200)), 1 - 0.025 ** (1 / 200)))
    assert found.p_value_against(0.0) == 1


def test_p_values_hold_for_all_comparisons_together():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )


def test_giant_groups_are_few_groups():
    assert effective_number(np.ones(40)) == 40
    assert effective_number(np.array([100.0, *np.ones(39)])) == pytest.approx(139**2 / (100**2 + 39))


class TestWeights:
    """Each group counts as one; labels that few groups have are left out and named."""

    def run(
        self, labels: np.ndarray, predicted: np.ndarray, groups: list[str], num_labels: int
    ) -> evaluation.ClassificationEvaluation:
        systems = {FINETUNED: predicted, "majority": np.zeros_like(predicted)}
        probabilities = {name: probabilities_of(found, num_labels) for name, found in systems.items()}
        compare = Comparison(EvaluationSettings(), "macro_f1", seed=1, task="classification")
        return evaluation.assess(labels, probabilities, groups, [f"l{n}" for n in range(num_labels)], compare)

    @pytest.mark.parametrize(("rows", "weight"), [(9, 1), (20, 2)])
    def test_a_group_of_up_to_ten_rows_counts_as_one_row_does(self, rows: int, weight: int):
        labels = np.array([0, 1] * 20 + [1] * rows)
        predicted = np.where(np.arange(40 + rows) < 40, labels, 0)
        found = self.run(labels, predicted, [*(str(n) for n in range(40)), *["large"] * rows], 2)
        assert found.scores["accuracy"][FINETUNED].estimate == pytest.approx(40 / (40 + weight))
        assert found.effective_groups == pytest.approx((40 + weight) ** 2 / (40 + weight**2))

    def test_a_label_of_few_groups_is_named_and_not_averaged(self):
        labels = np.array([0, 1] * 20 + [2] * 4 + [3] * 5)
        found = self.run(labels, np.where(labels == 2, 0, labels), [str(n) for n in range(49)], 5)
        assert (found.rare_labels, found.measurable_labels, found.rare_micro_f1) == (["l2"], 3, 0.0)
        assert found.score.estimate == pytest.approx((2 * 20 / 44 + 1 + 1) / 3)
        assert any(
            "1 labels have too few test groups to be measured; together their F1 is 0.000" in said
            for said in found.measured_on
        )

    @pytest.mark.parametrize("rows", range(1, 12))
    def test_five_groups_are_enough_whatever_their_rows(self, rows):
        index = np.repeat(np.arange(5), rows)
        weights = 1 / np.minimum(np.bincount(index), 10)[index]
        assert comparison.measurable_labels(np.ones((len(index), 1)), index, 5, weights).all()

    def test_rows_of_one_group_do_not_make_a_label_measurable(self):
        labels = np.array([0, 1] * 20 + [2] * 12)
        assert self.run(
            labels, labels, [*(str(n) for n in range(40)), *["x"] * 6, *["y"] * 6], 3
        ).rare_labels == ["l2"]


@pytest.mark.heavy
def test_seed_noise_leaves_out_what_the_rows_explain():
    rng = np.random.default_rng(6)
    found = {True: [], False: []}
    for with_noise in found:
        for _ in range(200):
            right = rng.random((12, 300)) < 0.8 + (rng.normal(0, 0.03, (12, 1)) if with_noise else 0)
            means = right.mean(1, keepdims=True)
            runs = [
                Run(score=float(mean[0]), influences=((row - mean) / 299).tolist())
                for row, mean in zip(right, means, strict=True)
            ]
            noise = pooled([runs])
            assert noise is not None and (noise.num_runs, noise.degrees_of_freedom) == (12, 11)
            found[with_noise].append(noise.variance)
    # Without noise of seeds half of the estimates are cut off at zero.
    assert np.mean(found[False]) < 0.1 * 0.03**2 + 0.16 / 300 * 0.25
    assert np.mean(found[True]) == pytest.approx(0.03**2, rel=0.15)
    assert pooled([runs[:8]]) is None and pooled([runs[:1]] * 12) is None
