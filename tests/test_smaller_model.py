"""The baseline of a smaller model: trained whole by the same recipe, the same when loaded, refused where its
tokens mean something else.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fullft_assets.errors import SettingsError
from fullft_assets.tasks.baseline import load_all
from fullft_assets.tasks.trained import SmallerModel
from tests import licence_labels, smollm2
from tests import project as projects
from tests.prepared import Prepared, prepare, prepare_language_model, write_tiny_model
from tests.test_lora import context_of_an_evaluation


def write_smaller(base: Path, folder: Path, kind: Any) -> None:
    """Write a model with the tokenizer of a base model, and half of its feed-forward layers' width."""
    config = AutoConfig.from_pretrained(str(base))
    config.intermediate_size //= 2
    with torch.random.fork_rng():
        torch.manual_seed(7)
        kind.from_config(config).save_pretrained(folder)
    for path in base.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder / path.name)


def prepared_for(task: str, root: Path) -> Prepared:
    base, planning = root / "model", {"smaller_model": "smaller"}
    if task in ("sft", "language_modeling"):
        smollm2.write_tiny_model(base)
        write_smaller(base, root / "smaller", AutoModelForCausalLM)
        planning["baselines"] = ["base_model", "smaller_model"]
        return prepare_language_model(root, task, rows=60, base_model="model", planning=planning)
    write_tiny_model(base)
    write_smaller(base, root / "smaller", AutoModel)
    planning["baselines"] = ["smaller_model"]
    if task == "classification":
        return prepare(root, rows=160, base_model="model", planning=planning)
    examples = {"task": "token_classification", "label": "spans", "labels": None, "group": "expression"}
    return prepare(
        root,
        base_model="model",
        delivered=licence_labels.spanned_rows(120),
        examples=examples,
        planning=planning,
    )


@pytest.mark.parametrize("task", ["classification", "token_classification", "sft"])
def test_it_is_trained_scored_and_predicts_the_same_when_loaded(task: str, tmp_path: Path) -> None:
    prepared = prepared_for(task, tmp_path / "project")
    recipe, rows = prepared.recipe, prepared.split("validation")
    (tmp_path / "fitted").mkdir()
    scores = dict(
        recipe.score_baselines(
            prepared.use_case.settings.baselines, tmp_path / "fitted", prepared.baseline_context
        )
    )
    loaded = load_all(["smaller_model"], tmp_path / "fitted", context_of_an_evaluation(prepared))[
        "smaller_model"
    ]
    found = loaded.predict(rows)
    if task == "classification":
        assert recipe._score_predicted("again", found, tmp_path) == pytest.approx(scores["smaller_model"])
    elif task == "token_classification":
        assert recipe._scores(found) == scores["smaller_model"]
    else:
        assert np.exp(-found.loss.sum() / found.num_tokens.sum()) == pytest.approx(
            scores["smaller_model"]["token_probability"]
        )
        assert scores["smaller_model"]["token_probability"] > scores["base_model"]["token_probability"]
    saved, original = (
        AutoModel.from_pretrained(folder)
        for folder in (tmp_path / "fitted/smaller_model", tmp_path / "project/smaller")
    )
    assert (
        saved.config.intermediate_size
        == prepared.recipe.load_original(prepared.use_case.settings.training).config.intermediate_size // 2
    )
    trained = [
        name
        for name, weight in saved.named_parameters()
        if "layer" in name and not torch.equal(weight, original.state_dict()[name])
    ]
    assert trained, "its weights have moved"


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    prepared = prepared_for("classification", tmp_path)
    tokenizer = tmp_path / "smaller" / "tokenizer.json"
    changed = json.loads(tokenizer.read_text(encoding="utf-8"))
    changed["normalizer"]["lowercase"] = False
    tokenizer.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(
        SettingsError, match=r"planning.smaller_model: its tokenizer is not that of base_model"
    ):
        SmallerModel.fit(prepared.split("train"), prepared.baseline_context)


def test_the_check_of_a_yaml_wants_a_smaller_model(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    write_smaller(tmp_path / "model", tmp_path / "smaller", AutoModel)
    project = projects.create(tmp_path, base_model="smaller")
    for planning, problem in (
        (
            {"smaller_model": "model", "baselines": ["majority", "smaller_model"]},
            r"it has [\d,]+ weights, base_model [\d,]+; give a smaller",
        ),
        ({"smaller_model": "nowhere", "baselines": ["majority", "smaller_model"]}, "nowhere"),
        (
            {"smaller_model": "model"},
            r"set it to \[majority, tfidf, frozen_probe, smaller_model\], or remove this",
        ),
        ({"baselines": ["majority", "smaller_model"]}, "planning.smaller_model does not say which"),
    ):
        project.configure(base_model="smaller", planning=planning)
        with pytest.raises(SettingsError, match=problem):
            project.use_case()
