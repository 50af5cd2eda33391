"""Baselines that prompt the base model: likelihoods against plain transformers, drawn examples, what is kept
of them, limits.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from fullft_assets.errors import DataError, SettingsError
from fullft_assets.tasks import prompting
from fullft_assets.tasks.baseline import load_all
from tests import project as projects, small_language_model
from tests.prepared import Prepared, prepare

PLANNING = {
    "baselines": ["majority", "zero_shot", "few_shot"],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("prompted")
    small_language_model.write(root / "model", [row["text"] for row in projects.licence_rows(100)])
    return prepare(root, rows=160, base_model="model", planning=PLANNING)


def test_labels_are_scored_by_the_mean_log_probability_of_their_names(prepared: Prepared) -> None:
    rows = prepared.split("validation").select(range(3))
    found = prompting.ZeroShot.fit(prepared.split("train"), prepared.baseline_context).predict(rows)

    model = LlamaForCausalLM.from_pretrained(prepared.base_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.base_model)
    labels, max_tokens = prepared.labels, prepared.use_case.settings.chunks.max_tokens

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for row, text in enumerate(rows.texts):
        prompt = ids(f"Texts and their labels. The labels are: {', '.join(labels)}.") + ids("\n\nText: ")
        prompt += ids(text)[:max_tokens] + ids("\nLabel:")
        means = []
        for label in labels:
            # The names do not merge with the colon in this vocabulary.
            name = ids(f" {label}")
            with torch.no_grad():
                logits = model(torch.tensor([prompt + name])).logits[0].log_softmax(-1)
            means.append(np.mean([float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(name)]))
        # A CPU with AMX predicts in bf16; this test computes in float32.
        np.testing.assert_allclose(found[row], np.exp(means) / np.exp(means).sum(), atol=1e-3)


def test_examples_are_in_the_prompt_with_their_labels(prepared: Prepared) -> None:
    fitted = prompting.FewShot.fit(prepared.split("train"), prepared.baseline_context)
    writer = prompting.PromptWriter(prepared.baseline_context)
    ids = fitted._examples(writer)
    assert 50 < len(ids) <= prompting.max_tokens(prepared.baseline_context)
    parts = writer.tokenization.tokenizer.decode(ids, skip_special_tokens=False).split("\n\nText: ")[1:]
    assert [part.rsplit("\nLabel: ", 1)[1] for part in parts] == [
        prepared.labels[label] for label in fitted.labels
    ]
    assert all(
        text.startswith(part.rsplit("\nLabel:", 1)[0][:20])
        for part, text in zip(parts, fitted.shown.texts, strict=True)
    )
    zero, few = (
        kind.predict(prepared.split("test"))
        for kind in (prompting.ZeroShot(prepared.baseline_context), fitted)
    )
    assert np.abs(zero - few).max() > 1e-4


def test_prompted_baselines_are_scored_saved_without_text_and_loaded(
    prepared: Prepared, tmp_path: Path
) -> None:
    recipe, names = prepared.recipe, prepared.use_case.settings.baselines
    scores = dict(recipe.score_baselines(names, tmp_path, prepared.baseline_context))
    assert set(scores) == set(names)
    loaded = load_all(names, tmp_path, prepared.baseline_context)
    for name in ("zero_shot", "few_shot"):
        predicted = loaded[name].predict(prepared.split("validation"))
        np.testing.assert_allclose(predicted.sum(1), 1)
        assert recipe._score_predicted(name, predicted, tmp_path) == pytest.approx(scores[name])
    kept = json.loads((tmp_path / "few_shot.json").read_text())
    assert set(kept) == {"ids", "labels"} and set(kept["ids"]) <= set(prepared.split("train").ids)


def test_rows_that_train_no_more_are_shown_no_more(prepared: Prepared, tmp_path: Path) -> None:
    context, train = prepared.baseline_context, prepared.split("train")
    fitted = prompting.FewShot.fit(train, context)
    fitted.save(tmp_path)
    fewer = train.select([row for row, id_ in enumerate(train.ids) if id_ != fitted.shown.ids[0]])
    loaded = prompting.FewShot.load(tmp_path, replace(context, train_rows=lambda: fewer))
    assert (loaded.shown.ids, list(loaded.labels)) == (fitted.shown.ids[1:], list(fitted.labels)[1:])
    with pytest.raises(DataError, match=r"few_shot.json: none of its 8 "):
        prompting.FewShot.load(tmp_path, replace(context, train_rows=lambda: train.select([])))


def test_each_label_is_drawn_as_often_as_another() -> None:
    labels = [0] * 50 + [1] * 20 + [2] * 2
    drawn = prompting.draw(labels, 9, seed=3)
    assert Counter(labels[row] for row in drawn) in ({0: 3, 1: 4, 2: 2}, {0: 4, 1: 3, 2: 2})
    assert drawn == prompting.draw(labels, 9, seed=3) != prompting.draw(labels, 9, seed=4)
    assert sorted(prompting.draw(labels, 100, seed=3)) == list(range(72))


def test_a_prompt_beyond_the_models_positions_is_refused(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = prepared.baseline_context
    monkeypatch.setattr(prompting, "max_tokens", lambda context: 2_000)
    monkeypatch.setattr(prompting, "NUM_EXAMPLES", 40)
    with pytest.raises(
        SettingsError,
        match=r"planning.baselines: .* prompt .* 512; lower chunks.max_tokens",
    ):
        prompting.FewShot.fit(prepared.split("train"), context).predict(prepared.split("test"))


def test_an_encoder_cannot_be_prompted(tmp_path: Path) -> None:
    project = projects.create(tmp_path, planning={"baselines": ["majority", "few_shot"]})
    with pytest.raises(
        SettingsError,
        match=r"planning.baselines.*few_shot .* base_model is a Bert",
    ):
        project.use_case()
