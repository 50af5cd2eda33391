"""Several labels a row: thresholds, metrics against plain references, the recipe's loss, what is saved with
the model.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForSequenceClassification

from fullft_assets.errors import StoreError
from fullft_assets.evaluation import FINETUNED, Comparison, read_evaluation
from fullft_assets.evaluation.metrics import compute
from fullft_assets.models.inference import predict_with
from fullft_assets.settings import EvaluationSettings
from fullft_assets.tasks.baseline import load_all
from fullft_assets.tasks.classification import assessment as multi_label
from fullft_assets.tasks.classification.recipe import DECISION_METRICS, thresholds_file
from fullft_assets.tasks.classification.scoring import LabelDecisions, read_thresholds
from tests import licence_labels
from tests.optimizer_steps import check_steps
from tests.prepared import QUIET, Prepared, prepare

pytestmark = pytest.mark.numeric

tables = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.tuples(*[st.tuples(st.booleans(), st.integers(0, 4))] * k), min_size=1, max_size=12)
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    rows = licence_labels.labelled_rows(300, known=set(licence_labels.LABELS))
    # Rows without any label are rows like others.
    rows = [{**row, "labels": [] if number % 11 == 0 else row["labels"]} for number, row in enumerate(rows)]
    return prepare(
        tmp_path_factory.mktemp("tiny"),
        tiny=True,
        delivered=rows,
        examples=licence_labels.SEVERAL_LABELS,
        chunks={"max_chunks": 3},
    )


def arrays(rows: list[tuple[tuple[bool, int], ...]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[label for label, _ in row] for row in rows]), np.array(
        [[value / 4 for _, value in row] for row in rows]
    )


def scores(labels: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    return compute(DECISION_METRICS, multi_label.decisions_of(labels, decided))


def plain_f1(labels: np.ndarray, decided: np.ndarray) -> float:
    found, wrong, missed = ((labels & decided).sum(), (~labels & decided).sum(), (labels & ~decided).sum())
    return 2 * found / (2 * found + wrong + missed) if found else 0.0


class TestThresholds:
    @settings(max_examples=80, deadline=None)
    @given(tables)
    def test_none_scores_higher_than_the_one_found(self, rows):
        labels, probabilities = arrays(rows)
        for i, threshold in enumerate(multi_label.fit_thresholds(labels, probabilities)):
            if labels[:, i].all() or not labels[:, i].any():
                assert threshold == 0.5
            else:
                assert plain_f1(labels[:, i], probabilities[:, i] >= threshold) == pytest.approx(
                    max(plain_f1(labels[:, i], probabilities[:, i] >= cut) for cut in np.linspace(0, 1, 41))
                )

    def test_is_between_two_probabilities_and_near_to_a_half(self):
        labels = np.array([[1], [1], [0], [0]], bool)
        assert multi_label.fit_thresholds(labels, np.array([[0.9], [0.3], [0.2], [0.1]]))[0] == pytest.approx(
            0.25
        )
        # Between 0.9 and 0.1 all cuts are equal: the middle of the gap.
        assert multi_label.fit_thresholds(labels, np.array([[0.95], [0.9], [0.1], [0.0]]))[
            0
        ] == pytest.approx(0.5)

    def test_answers_of_another_number_of_labels_are_refused(self):
        with pytest.raises(ValueError, match=r"predictions: shape \(4, 3\), .* \(4, 2\)"):
            multi_label.fit_thresholds(np.ones((4, 2), bool), np.ones((4, 3)))
        with pytest.raises(ValueError, match="expected truth values"):
            multi_label.fit_thresholds(np.ones(4, bool), np.ones(4))
        with pytest.raises(ValueError, match="row 1 is not"):
            scores(np.ones((2, 1), bool), np.array([[1.0], [np.nan]]))


class TestScores:
    def assess(
        self, labels: np.ndarray, tuned: np.ndarray, other: np.ndarray, metric: str = "macro_f1"
    ) -> multi_label.MultiLabelEvaluation:
        groups = [f"g{n // 2}" for n in range(len(labels))]
        names = [f"l{n}" for n in range(labels.shape[1])]
        thresholds = np.full(labels.shape[1], 0.5)
        comparison = Comparison(EvaluationSettings(), metric, seed=1, task="multi_label")
        return multi_label.assess_decisions(
            labels, {FINETUNED: tuned, "label_shares": other}, groups, names, thresholds, comparison
        )

    def test_a_label_without_a_test_row_is_reported_and_no_success(self):
        labels = np.random.default_rng(0).random((60, 3)) < 0.5
        labels[:, 2] = False
        invented = labels.copy()
        invented[:10, 2] = True
        found = self.assess(labels, invented, ~labels)
        assert found.unmeasured == ["l2"] and found.scores["macro_f1"][FINETUNED].estimate == 1.0
        assert found.scores["micro_f1"][FINETUNED].estimate < 1.0
        assert (found.per_label[2].support, found.per_label[2].num_predicted, found.per_label[2].f1) == (
            0,
            10,
            0.0,
        )
        assert "The test set has no `l2`: quality there is unknown." in found.limits
        assert found.gain_over_best_baseline.low > 0.5 and found.justification.justified
        assert read_evaluation(found.model_dump_json()) == found

    def test_nothing_true_and_nothing_given_scores_nothing(self):
        nothing = np.zeros((6, 2), bool)
        found = self.assess(nothing, nothing, nothing)
        assert [found.scores[metric][FINETUNED].estimate for metric in DECISION_METRICS] == [0.0, 0.0, 1.0]


class TestRecipe:
    @pytest.mark.parametrize("micro_batch_size", [8, 2, 1])
    def test_loss_and_gradient_equal_a_plain_mean_however_the_batch_is_divided(
        self, tiny: Prepared, tmp_path: Path, micro_batch_size: int
    ):
        def losses_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            p = torch.sigmoid(logits)
            return -(labels * p.log() + (1 - labels) * (1 - p).log())

        check_steps(tiny, tmp_path, micro_batch_size, losses_of)

    def test_thresholds_are_of_the_final_weights_and_found_by_who_loads_the_model(
        self, tiny: Prepared, tmp_path: Path
    ):
        recipe = tiny.recipe
        model = recipe.load(tiny.use_case.settings.training)
        assert list(recipe.finish(model, QUIET)["label_thresholds"]) == licence_labels.LABELS
        model.save_pretrained(tmp_path)
        expected = multi_label.fit_thresholds(
            recipe.validation.labels, predict_with(model, recipe.validation.chunks)
        )
        np.testing.assert_array_equal(read_thresholds(tmp_path), expected)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert loaded.config.problem_type == "multi_label_classification"
        loaded.config.label_thresholds = [0.5]
        loaded.save_pretrained(tmp_path)
        with pytest.raises(StoreError, match="label_thresholds should be 6 "):
            read_thresholds(tmp_path)


def test_baselines_are_saved_with_their_thresholds(tiny: Prepared, tmp_path: Path) -> None:
    recipe = tiny.recipe
    # In training no row has the first label, and all have the second.
    labels = recipe.train.labels.copy()
    labels[:, 0], labels[:, 1] = False, True
    recipe = replace(recipe, train=replace(recipe.train, labels=labels))
    names = tiny.use_case.settings.baselines
    scored = dict(recipe.score_baselines(names, tmp_path, tiny.baseline_context))
    assert tuple(scored) == names == ("label_shares", "tfidf", "frozen_probe")
    for name, baseline in load_all(names, tmp_path, tiny.baseline_context).items():
        thresholds = np.load(tmp_path / thresholds_file(name))["thresholds"]
        probabilities = baseline.predict(recipe.validation)
        assert scores(recipe.validation.labels, probabilities >= thresholds) == pytest.approx(scored[name]), (
            name
        )
        assert (probabilities[:, 0] < 1e-6).all() and (probabilities[:, 1] > 1 - 1e-6).all(), name
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"}
    # No better than giving every label to every row, where the share is all that is known.
    everything = scores(recipe.validation.labels, np.ones_like(recipe.validation.labels))
    assert scored["label_shares"]["macro_f1"] == pytest.approx(everything["macro_f1"], abs=0.1)


def test_labels_that_a_system_does_not_know_are_never_given() -> None:
    given = LabelDecisions(np.array([[0.9, 0.2]]), np.array([0.5, 0.1])).in_order(["b", "gone"], ["a", "b"])
    assert given.labels.tolist() == [[False, True]]
    with pytest.raises(StoreError, match="none of .* `x`, only `b`, `gone`"):
        LabelDecisions(np.ones((1, 2)), np.ones(2)).in_order(["b", "gone"], ["x"])
