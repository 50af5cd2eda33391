"""The baselines on real licence texts: what they score, and that they come back from disk unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fullft_assets.models.inference import embed
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext, load_all
from fullft_assets.tasks.classification.baselines import FrozenProbe, Majority, Tfidf
from tests.prepared import Prepared, prepare

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("baselines"), rows=600)


@pytest.fixture(scope="module")
def fitted(prepared: Prepared) -> dict[str, Baseline]:
    train = prepared.split("train")
    return {kind.name: kind.fit(train, context(prepared)) for kind in (Majority, Tfidf, FrozenProbe)}


def context(prepared: Prepared, num_labels: int | None = None) -> BaselineContext:
    return replace(prepared.baseline_context, labels=prepared.labels[:num_labels])


def accuracy(fitted: Baseline, split: Split) -> float:
    return float((fitted.predict(split).argmax(1) == split.labels).mean())


def binary(split: Split) -> Split:
    return replace(split, labels=(split.labels == np.bincount(split.labels).argmax()).astype(np.int64))


def test_probabilities_are_ones_rows(prepared, fitted) -> None:
    validation = prepared.split("validation")
    for baseline in fitted.values():
        found = baseline.predict(validation)
        assert found.shape == (len(validation), len(prepared.labels))
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        assert (found >= 0).all()


def test_learned_ways_beat_the_commonest_label(prepared, fitted) -> None:
    heldout = prepared.split("test")
    majority = accuracy(fitted["majority"], heldout)
    assert majority == pytest.approx((heldout.labels == np.bincount(prepared.split("train").labels).argmax()).mean())
    for name in ("tfidf", "frozen_probe"):
        assert accuracy(fitted[name], heldout) > majority + 0.1, name


def test_saved_baselines_answer_the_same(prepared, fitted, tmp_path: Path) -> None:
    validation = prepared.split("validation")
    for baseline in fitted.values():
        baseline.save(tmp_path)
    loaded = load_all(fitted, tmp_path, context(prepared))
    assert set(loaded) == set(fitted)
    for name, baseline in loaded.items():
        np.testing.assert_array_equal(baseline.predict(validation), fitted[name].predict(validation), err_msg=name)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz"}


def test_files_hold_no_pickle(fitted, tmp_path: Path) -> None:
    for baseline in fitted.values():
        baseline.save(tmp_path)
    for path in tmp_path.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)


def test_two_labels_give_the_regressions_own_probabilities(prepared) -> None:
    train, validation = binary(prepared.split("train")), binary(prepared.split("validation"))
    two = Tfidf.fit(train, context(prepared, 2))
    features = two.vectorizer.transform(train.texts)
    expected = LogisticRegression(C=10.0, max_iter=1_000).fit(features, train.labels)
    found = two.predict(validation)
    np.testing.assert_allclose(found, expected.predict_proba(two.vectorizer.transform(validation.texts)), atol=1e-6)
    assert accuracy(two, validation) > accuracy(Majority.fit(train, context(prepared, 2)), validation)


def test_more_labels_give_the_regressions_own_probabilities(prepared, fitted) -> None:
    train, validation = prepared.split("train"), prepared.split("validation")
    vectorizer = fitted["tfidf"].vectorizer
    expected = LogisticRegression(C=10.0, max_iter=1_000).fit(vectorizer.transform(train.texts), train.labels)
    np.testing.assert_allclose(
        fitted["tfidf"].predict(validation), expected.predict_proba(vectorizer.transform(validation.texts)), atol=1e-6
    )


def test_probe_reads_windows_as_it_was_fitted(prepared, fitted) -> None:
    validation = prepared.split("validation")
    embeddings = embed(prepared.base_model, validation.windows)
    probe = fitted["frozen_probe"]
    np.testing.assert_allclose(probe.predict(validation), probe.predict_embedded(embeddings), atol=1e-6)


def test_unseen_words_and_empty_texts_get_an_answer(prepared, fitted) -> None:
    strange = replace(prepared.split("validation").select([0, 1]), texts=["Ωμέγα qqqzzz", ""])
    found = fitted["tfidf"].predict(strange)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.isfinite(found).all()
