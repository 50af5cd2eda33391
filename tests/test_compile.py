"""A compiled model trains as the other does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.machine import lacks
from tests.test_isolation import SMALL
from tests.test_packed import SETTINGS, fit, training

#: One layer: most of the time goes to the C++ compiler.
LLAMA = LlamaConfig(**SMALL | {"num_hidden_layers": 1}, pad_token_id=0)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_model_trains_to_the_same_losses(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        lacks("apt-get install g++ python3-dev")
    logs, names = [], []
    for compiles in (False, True):
        done = fit(
            LLAMA,
            training(marked=True),
            SETTINGS.model_copy(update={"compile": compiles}),
            tmp_path / str(compiles),
        )
        logs.append([(line["loss"], line["grad_norm"]) for line in done.history if "loss" in line])
        assert (done.model.base_model._compiled_call_impl is not None) is compiles
        done.model.save_pretrained(tmp_path / f"{compiles}-model")
        names.append(set(load_file(tmp_path / f"{compiles}-model" / "model.safetensors")))
    assert np.allclose(logs[0], logs[1], rtol=1e-4) and names[0] == names[1]
