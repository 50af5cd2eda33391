"""Heads of classifiers and taggers: how they pool, how they begin, and that what is saved is read by the
libraries that users have.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
    EuroBertConfig,
    EuroBertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from fullft_assets.launch.workloads import training
from fullft_assets.models import inference, loading
from fullft_assets.release import served
from fullft_assets.tasks.context import open_recipe
from fullft_assets.training.finetuning import fine_tune
from tests import test_multi_label, test_spans
from tests.machine import printed_by
from tests.manifests import write
from tests.prepared import QUIET, Prepared, prepare
from tests.project import write_files

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("fp32")]

labelled, spanned = test_multi_label.tiny, test_spans.tiny
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 30_522,
}
ENCODERS: dict[str, Any] = {
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, pad_token_id=0)),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(**SIZES, pad_token_id=0)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZES, pad_token_id=0)),
    "eurobert": lambda: EuroBertModel(EuroBertConfig(**SIZES, num_key_value_heads=2, pad_token_id=0)),
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0)),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("heads"), rows=400)


@pytest.fixture(params=ENCODERS)
def architecture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    ENCODERS[request.param]().save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def began(case: Prepared, base_model: Path | None = None) -> Any:
    """Return a model whose head was fitted and that no step has trained, with its recipe."""
    recipe = case.recipe if base_model is None else replace(case.recipe, base_model=base_model)
    settings = case.use_case.settings.training
    model = recipe.load(settings)
    inference.set_head_weights(model, recipe.fit_head(model, settings, QUIET))
    return recipe, model


@pytest.mark.parametrize("task", ["case", "labelled", "spanned"])
def test_a_training_begins_with_its_probe(task: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    prepared = request.getfixturevalue(task)
    settings = prepared.use_case.settings.training.model_copy(
        update={"learning_rate": 1e-12, "epochs": 0.2, "track": [], "precision": "fp32"}
    )
    fit = fine_tune(prepared.recipe, settings, 3, tmp_path, QUIET, resumable=False, evaluate_at=[])
    expected = prepared.recipe.fit_head(prepared.recipe.load(settings), settings, QUIET)
    np.testing.assert_allclose(
        inference.output_layer(fit.model).weight.detach().numpy(), expected.coefficients, atol=1e-6
    )
    assert np.abs(expected.coefficients).max() > 0.1


def test_a_training_begins_as_the_probe_that_planning_fitted(case: Prepared, tmp_path: Path) -> None:
    probe = {"coefficients": np.full((len(case.labels), 384), 0.5), "intercept": np.arange(len(case.labels))}
    np.savez(tmp_path / "probe.npz", **probe)
    files = {"frozen_probe.npz": (tmp_path / "probe.npz").read_bytes()}
    baselines = write(case.store, case.use_case.name, "cheaper_baselines", files=files)
    job = case.job("finetuned_checkpoint", training={"learning_rate": 1e-12, "epochs": 0.1, "track": []})
    job = job.model_copy(update={"inputs": {**job.inputs, "cheaper_baselines": baselines.ref}})
    training.work(job, case.store, QUIET)
    trained = case.store.folder(case.store.find(job.case, job.stage, job.key))
    layer = inference.output_layer(inference.load_classifier(trained / "model"))
    np.testing.assert_allclose(layer.weight.detach(), probe["coefficients"], atol=1e-6)
    np.testing.assert_allclose(layer.bias.detach(), probe["intercept"], atol=1e-6)
    recipe = open_recipe(job, case.store, case.snapshot, baselines=baselines)
    assert recipe.probe is not None and recipe.first(50).probe is None, (
        "a pilot begins as one of its own rows"
    )


def test_the_base_model_reads_a_row_once_for_all_heads(case: Prepared) -> None:
    recipe, model = began(case)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = recipe.first(50).fit_head(model, case.use_case.settings.training, QUIET)
    assert not passes
    expected = case.recipe.first(50).fit_head(model, case.use_case.settings.training, QUIET)
    assert passes
    np.testing.assert_allclose(found.coefficients, expected.coefficients, rtol=0.01, atol=1e-3)


def test_every_architecture_begins_with_a_head_that_has_learned(case: Prepared, architecture: Path) -> None:
    recipe, model = began(case, architecture)
    states = inference.features_of_documents(model, recipe.train.chunks)
    weights = recipe.fit_head(model, case.use_case.settings.training, QUIET)
    has_intercept = inference.has_intercept(model)
    assert has_intercept == (architecture.name != "llama")
    scores = states @ weights.coefficients.T + (weights.intercept if has_intercept else 0)
    found = inference.predict_with(model, recipe.train.chunks)
    np.testing.assert_allclose(found, softmax(scores, axis=1), atol=1e-4)
    majority = np.bincount(recipe.train.labels).max() / len(recipe.train)
    assert (found.argmax(1) == recipe.train.labels).mean() > majority


def test_a_saved_classifier_answers_the_same(case: Prepared, architecture: Path, tmp_path: Path) -> None:
    recipe, model = began(case, architecture)
    windows = recipe.validation.chunks[:20]
    loading.save_model(model, tmp_path / "saved", 64)
    expected = inference.predict_with(model, windows)
    np.testing.assert_allclose(
        inference.predict_with(inference.load_classifier(tmp_path / "saved"), windows), expected, atol=1e-6
    )
    is_pooled = isinstance(model, loading.PooledClassifier)
    assert is_pooled == (architecture.name in ("roberta", "deberta"))
    if not is_pooled:  # transformers has it as it is
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
        np.testing.assert_allclose(inference.predict_with(loaded, windows), expected, atol=1e-6)
    again = inference.load_for_training(
        tmp_path / "saved", case.labels, load=inference.load_classifier, keeps_head=True
    )
    np.testing.assert_allclose(inference.predict_with(again, windows), expected, atol=1e-6)


def test_sentence_transformers_reads_what_is_saved(case: Prepared, tmp_path: Path) -> None:
    """In a process that does not import this package, by the lines of the model card."""
    from fullft_assets.chunks import save_tokenizer

    recipe, model = began(case)
    loading.save_model(model, tmp_path, case.use_case.settings.chunks.max_tokens)
    save_tokenizer(case.base_model, [], tmp_path)
    texts = [
        text
        for text, windows in zip(recipe.validation.texts, recipe.validation.chunks, strict=True)
        if len(windows) == 1
    ][:5]
    code = (
        "import json, sys\nfrom sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "print(json.dumps(model.encode(json.loads(sys.argv[2])).tolist()))\n"
        "assert not any(name.startswith('fullft_assets') for name in sys.modules)"
    )
    printed = printed_by("-c", code, tmp_path, json.dumps(texts))
    chosen = recipe.validation.select([recipe.validation.texts.index(text) for text in texts])
    expected = inference.predict_with(model, chosen.chunks)
    np.testing.assert_allclose(softmax(json.loads(printed.splitlines()[-1]), axis=1), expected, atol=1e-4)
    for answer, probabilities in zip(
        served.predict_fn({"inputs": texts}, served.model_fn(str(tmp_path))), expected, strict=True
    ):
        scores = {each["label"]: each["score"] for each in answer}
        np.testing.assert_allclose([scores[label] for label in case.labels], probabilities, atol=1e-4)
    loading.save_model(model.bfloat16(), tmp_path, case.use_case.settings.chunks.max_tokens)
    parts = served.model_fn(str(tmp_path))
    parts["encoder"].float()  # as transformers before release 5 loads it
    assert len(served.predict_fn({"inputs": texts}, parts)) == len(texts)


@pytest.mark.parametrize("name", ["roberta", "eurobert"])
def test_a_folder_that_pools_by_its_class_token_is_read_so(name: str, case: Prepared, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ENCODERS[name]().save_pretrained(tmp_path)
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    write_files(
        tmp_path,
        {
            "modules.json": json.dumps(modules),
            "1_Pooling/config.json": json.dumps({"pooling_mode_cls_token": True}),
        },
    )
    model = inference.load_for_training(tmp_path, ["a", "b"], load=inference.load_new_classifier)
    windows = [[[5, 6, 7]]]
    state = model.base_model.eval()(torch.tensor(windows[0])).last_hidden_state[:, 0]
    if name == "eurobert":  # its own classifier has another layer
        state = model.activation(model.dense(state))
    np.testing.assert_allclose(
        inference.features_of_documents(model, windows), state.detach().numpy(), atol=1e-6
    )


def test_a_head_of_other_labels_is_not_used(case: Prepared, tmp_path: Path) -> None:
    _, model = began(case)
    loading.save_model(model, tmp_path, 64)
    assert (
        inference.load_for_training(
            tmp_path, ["a", "b", "c"], load=inference.load_new_classifier
        ).config.num_labels
        == 3
    )


def test_each_label_has_rows_in_the_fit(case: Prepared) -> None:
    rare = len(case.recipe.train) - 1
    labels = np.zeros(len(case.recipe.train), np.int64)
    labels[rare] = 1
    chosen = replace(case.recipe, train=replace(case.recipe.train, labels=labels))._head_rows(50)
    assert len(chosen) == 51 and set(chosen.labels.tolist()) == {0, 1}
