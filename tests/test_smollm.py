"""SmolLM2-135M from its package: dequantised once, whole, and as good as it was."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullft_assets.base_model import read_header
from fullft_assets.demos import smollm
from tests import machine

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


def test_existing_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm, "PACKAGE", "no_such_package")
    folder = tmp_path / "model"
    folder.mkdir()
    assert smollm.write(folder) == folder and not list(folder.iterdir())
