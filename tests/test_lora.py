"""The baseline LoRA on real licence texts: it trains adapters alone, learns, and predicts the same after it
was saved.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fullft_assets.errors import DivergenceError, StoreError
from fullft_assets.launch.workloads import planning
from fullft_assets.task import task_of
from fullft_assets.tasks.baseline import BaselineContext, load_all
from fullft_assets.tasks.context import WithoutTraining
from fullft_assets.tasks.trained import AdaptedRecipe, Lora, lora_settings
from fullft_assets.training.finetuning import fine_tune
from tests import licence_labels
from tests.prepared import QUIET, Prepared, prepare, prepare_language_model, write_general

#: Options of `prepare` by task.
LABELLED: dict[str, dict[str, Any]] = {
    "classification": {"rows": 160},
    "multi_label": {
        "delivered": licence_labels.labelled_rows(160, known={"notice", "permissive", "copyleft"}),
        "examples": {
            "task": "multi_label",
            "label": "labels",
            "labels": ["notice", "permissive", "copyleft"],
            "group": "expression",
        },
    },
    "token_classification": {
        "delivered": licence_labels.spanned_rows(120),
        "examples": {"task": "token_classification", "label": "spans", "labels": None, "group": "expression"},
    },
}


def prepared_for(task: str, root: Path) -> Prepared:
    baselines = {
        "planning": {
            "baselines": ["base_model", "lora"] if task in ("sft", "language_modeling") else ["lora"],
        }
    }
    return (
        prepare(root, tiny=True, **LABELLED[task], **baselines)
        if task in LABELLED
        else prepare_language_model(root, task, rows=60, **baselines)
    )


def context_of_an_evaluation(prepared: Prepared) -> BaselineContext:
    """What a loaded baseline gets: a recipe without any training row."""
    context, settings = prepared.baseline_context, prepared.use_case.settings
    data = WithoutTraining(
        prepared.base_model,
        prepared.split("test").select([]),
        settings.chunks.added_tokens,
        None,
        None,
        prepared.store,
        prepared.snapshot,
        settings,
        known_labels=context.labels,
    )
    return replace(context, open_recipe=lambda: task_of(settings.examples).open_recipe(data))


@pytest.mark.parametrize(
    "task", ["classification", "multi_label", "token_classification", "sft", "language_modeling"]
)
def test_it_is_scored_and_predicts_the_same_when_loaded(task: str, tmp_path: Path) -> None:
    prepared = prepared_for(task, tmp_path / "project")
    recipe, names = prepared.recipe, prepared.use_case.settings.baselines
    (tmp_path / "fitted").mkdir()
    scores = dict(recipe.score_baselines(names, tmp_path / "fitted", prepared.baseline_context))["lora"]
    assert scores and all(0 <= score <= 1 or name == "loss" for name, score in scores.items())

    loaded = load_all(["lora"], tmp_path / "fitted", context_of_an_evaluation(prepared))["lora"]
    assert isinstance(loaded, Lora)
    again = Lora(loaded.rank, loaded.weights, prepared.baseline_context)
    rows = prepared.split("validation")
    mine, theirs = loaded.predict(rows), again.predict(rows)
    if task in ("sft", "language_modeling"):
        np.testing.assert_array_equal(mine.loss, theirs.loss)
        mean = mine.loss.sum() / mine.num_tokens.sum()
        assert np.exp(-mean) == pytest.approx(scores["token_probability"], rel=1e-6)
    else:
        assert all(np.array_equal(one, other) for one, other in zip(mine, theirs, strict=True))
        assert recipe._score_predicted("again", mine, tmp_path) == pytest.approx(scores)


@pytest.mark.parametrize("task", ["classification", "sft"])
def test_the_pilots_rows_train_it_unasked(task: str, tmp_path: Path) -> None:
    prepared = prepared_for(task, tmp_path)
    job = prepared.job(
        "pilot_run",
        planning={"baselines": ["base_model"] if task == "sft" else ["tfidf"]},
        training={"batch_size": 4, "micro_batch_size": 4},
    )
    planning.work(job, prepared.store, QUIET)
    pilot = prepared.store.find(job.case, "pilot_run", job.key)
    assert pilot is not None
    assert 0 < pilot.metadata["lora_score"] < 1
    (point,) = pilot.metadata["learning_curve"]
    recipe = prepared.recipe.first(point["rows"])
    scored = (
        dict(recipe.score_baselines(["tfidf"], tmp_path, prepared.baseline_context)) if task != "sft" else {}
    )
    expected = scored["tfidf"]["macro_f1"] if scored else point["start"]
    assert point["baseline"] == pytest.approx(expected) and point["rows"] < prepared.recipe.num_rows
    assert f"(LoRA on the same rows {pilot.metadata['lora_score']:.3f})" in pilot.checks[0].description


def test_what_it_forgets_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    write_general(tmp_path / "general", 20)
    prepared = prepare(
        tmp_path,
        tiny=True,
        **LABELLED["classification"],
        planning={"baselines": ["tfidf", "lora"]},
        snapshot={"general": {"path": "general"}},
    )
    job = prepared.job("pilot_run")
    planning.work(job, prepared.store, QUIET)
    found = prepared.store.find(job.case, "cheaper_baselines", job.key)
    assert list(found.metadata["rises"]) == ["lora"] and found.metadata["rises"]["lora"] > 0


@pytest.mark.parametrize(("rate", "expected"), [(None, 1e-3), (1e-5, 1e-4)])
def test_its_rate_is_ten_times_that_of_full_fine_tuning(
    rate: float | None, expected: float, tmp_path: Path
) -> None:
    prepared = prepared_for("classification", tmp_path / "project")
    changed = prepared.use_case.settings.training.model_copy(update={"learning_rate": rate, "epochs": 1.0})
    settings = lora_settings(prepared.use_case.settings.model_copy(update={"training": changed}))
    recipe: Any = AdaptedRecipe(prepared.recipe)
    fit = fine_tune(recipe, settings, 1, tmp_path / "fit", QUIET, evaluate_at=[], resumable=False)
    assert fit.about["learning_rate"] == pytest.approx(expected)


@pytest.mark.slow
class TestTraining:
    @pytest.fixture(scope="class")
    def prepared(self, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
        return prepare(
            tmp_path_factory.mktemp("lora"),
            rows=100,
            planning={"baselines": ["majority", "lora"]},
        )

    @pytest.fixture(scope="class")
    def fitted(self, prepared: Prepared) -> Lora:
        return Lora.fit(prepared.split("train"), prepared.baseline_context)

    def test_only_adapters_and_what_is_above_the_layers_are_trained(
        self, prepared: Prepared, fitted: Lora
    ) -> None:
        original = prepared.recipe.load_original(prepared.use_case.settings.training)
        adapted = [name for name in fitted.weights if "lora_" in name]
        # Query, key, value, output and the two of the feed-forward part of each of the six layers have two
        # matrices each.
        assert len(adapted) == 6 * 6 * 2
        assert {name.split(".")[0] for name in fitted.weights if name not in adapted} <= {
            "bert",
            "classifier",
        }
        assert not any(
            "embeddings" in name or (".layer." in name and "lora_" not in name) for name in fitted.weights
        )
        assert sum(weight.numel() for weight in fitted.weights.values()) < 0.1 * original.num_parameters()
        assert all(weight.abs().sum() > 0 for name, weight in fitted.weights.items() if "lora_B" in name), (
            "each adapter has learned"
        )

    def test_weights_of_another_model_are_refused(
        self, prepared: Prepared, fitted: Lora, tmp_path: Path
    ) -> None:
        fitted.save(tmp_path)
        weights = load_file(tmp_path / "lora.safetensors")
        weights.pop(next(name for name in weights if "lora_A" in name))
        save_file(weights, tmp_path / "lora.safetensors", {"rank": "16"})
        with pytest.raises(
            StoreError, match=r"lora.safetensors: bert.*lora_A.* materialise cheaper_baselines again"
        ):
            Lora.load(tmp_path, prepared.baseline_context).predict(prepared.split("test"))


def test_a_training_that_diverges_is_no_score(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, tiny=True, rows=160)
    weights = load_file(prepared.base_model / "model.safetensors")
    next(weight for name, weight in weights.items() if "layer.1" in name).fill_(float("nan"))
    save_file(weights, prepared.base_model / "model.safetensors", {"format": "pt"})
    with pytest.raises(DivergenceError, match=r"baseline lora: .*lower training.learning_rate, or remove"):
        Lora.fit(prepared.split("train"), prepared.baseline_context)
