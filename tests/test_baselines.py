"""The baselines on real licence texts: what they score, and that they come back from disk unchanged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import hstack
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from fullft_assets.models.inference import embed, load_base
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext, load_all
from fullft_assets.tasks.classification.baselines import TFIDF_C, FrozenProbe, Majority, Tfidf
from fullft_assets.tasks.heads import fit_on_states
from tests.prepared import Prepared, prepare

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("baselines"), rows=600)


@pytest.fixture(scope="module")
def fitted(prepared: Prepared) -> dict[str, Baseline]:
    return {
        kind.name: kind.fit(prepared.split("train"), context(prepared))
        for kind in (Majority, Tfidf, FrozenProbe)
    }


def context(prepared: Prepared, num_labels: int | None = None) -> BaselineContext:
    return replace(prepared.baseline_context, labels=prepared.labels[:num_labels])


def binary(split: Split) -> Split:
    return replace(split, labels=(split.labels == np.bincount(split.labels).argmax()).astype(np.int64))


def test_saved_baselines_answer_the_same(prepared, fitted, tmp_path: Path) -> None:
    validation = prepared.split("validation")
    for baseline in fitted.values():
        baseline.save(tmp_path)
    loaded = load_all(fitted, tmp_path, context(prepared))
    assert set(loaded) == set(fitted)
    for name, baseline in loaded.items():
        np.testing.assert_array_equal(
            baseline.predict(validation), fitted[name].predict(validation), err_msg=name
        )
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"}


@pytest.mark.parametrize("num_labels", [2, 4])
def test_the_regression_is_that_of_the_strength_which_is_best_on_validation_rows(
    prepared, num_labels
) -> None:
    train, validation = (
        prepared.split(name) if num_labels == 4 else binary(prepared.split(name))
        for name in ("train", "validation")
    )
    fitted = Tfidf.fit(
        train,
        replace(
            context(prepared, num_labels), open_recipe=lambda: replace(prepared.recipe, validation=validation)
        ),
    )
    features, checked = (
        hstack([each.transform(rows.texts) for each in fitted.vectorizers]) for rows in (train, validation)
    )
    models = [LogisticRegression(C=C, max_iter=1_000).fit(features, train.labels) for C in TFIDF_C]
    best = min(models, key=lambda model: log_loss(validation.labels, model.predict_proba(checked)))
    np.testing.assert_allclose(fitted.predict(validation), best.predict_proba(checked), atol=1e-4)
    assert TFIDF_C == (1.0, 10.0, 100.0)
    assert [each.analyzer for each in fitted.vectorizers] == ["word", "char_wb"]


@pytest.mark.usefixtures("fp32")
def test_the_probe_reads_the_mean_of_all_tokens(prepared, fitted) -> None:
    validation, weights = prepared.split("validation"), fitted["frozen_probe"].weights
    scores = (
        embed(load_base(prepared.base_model), validation.chunks) @ weights.coefficients.T + weights.intercept
    )
    np.testing.assert_allclose(fitted["frozen_probe"].predict(validation), softmax(scores, axis=1), atol=1e-5)


@pytest.mark.parametrize("constant", [[2], [0, 1, 2, 4]])
def test_a_constant_feature_takes_no_part_in_the_probe(constant: list[int]) -> None:
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(0, 3, 300)
    states[:, constant] = 0.1 + 1e-8 * rng.normal(size=(300, len(constant)))
    head = fit_on_states(states, labels, 3, (states, labels), intercept=True)
    assert np.abs(head.coefficients).max() < 100 and not head.coefficients[:, constant].any()


def test_unseen_words_and_empty_texts_get_an_answer(prepared, fitted) -> None:
    found = fitted["tfidf"].predict(replace(prepared.split("validation").select([0, 1]), texts=["Ωμέγα", ""]))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.isfinite(found).all()
