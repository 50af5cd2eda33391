"""What a pass of training computes in, and how often; compiled, and on an accelerator of another kind than
CUDA.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig

from fullft_assets.models import precision
from fullft_assets.models.inference import load_causal, load_classifier, load_tagger
from fullft_assets.settings import TrainingSettings
from fullft_assets.training.loop import place
from tests.machine import lacks, printed_by
from tests.optimizer_steps import gradients
from tests.test_isolation import SMALL, build
from tests.test_packed import LLAMA, SETTINGS, fit, training

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("chosen", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_pass_computes_in_the_precision_and_returns_fp32(chosen: str, dtype: torch.dtype) -> None:
    model = build(LLAMA)
    computed: list[torch.dtype] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: computed.append(output.dtype))
    passing = place(model, TrainingSettings(precision=chosen), 1)
    assert passing(input_ids=torch.ones((1, 4), dtype=torch.long)).logits.dtype == torch.float32
    assert computed == [dtype]


@pytest.mark.parametrize(
    ("has_card", "auto", "dtype"),
    [(True, "bf16", torch.bfloat16), (True, "fp16", torch.float32), (False, "bf16", torch.float32)],
)
def test_a_model_is_scored_in_the_format_that_a_card_computes_in(
    has_card: bool, auto: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast's copies beside weights in fp32 would take half as much again."""
    build(LLAMA).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_card)
    monkeypatch.setattr(precision, "resolve", lambda setting: auto)
    for load in (load_causal, load_classifier, load_tagger):
        assert load(tmp_path).dtype == dtype
    assert load_causal(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "config", [LLAMA, MixtralConfig(**SMALL, num_local_experts=2)], ids=["llama", "mixtral"]
)
def test_gradient_checkpointing_computes_layers_twice_or_what_is_between_their_products(
    config: PreTrainedConfig,
) -> None:
    passes = {}
    for setting in (False, True, "selective"):
        model = build(config).train()
        passing = place(model, TrainingSettings(precision="fp32", gradient_checkpointing=setting), 1)
        _Operations.counts.clear()
        with _Operations():
            passing(input_ids=torch.arange(1, 9)[None]).logits.square().sum().backward()
        passes[setting] = (
            [
                _Operations.counts[kind]
                for kind in ("_scaled_dot_product_flash_attention_for_cpu", "mm", "rsqrt")
            ],
            gradients(model),
        )
    (attended, products, roots), expected = passes[False]
    assert all(torch.equal(found, expected) for _, found in passes.values())
    assert [
        passes[True][0],
        passes["selective"][0],
    ] == [
        [2 * attended, pytest.approx(1.33 * products, rel=0.2), 2 * roots - 1],
        [attended, products, 2 * roots - 1],
    ]


class _Operations(TorchDispatchMode):
    counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


_ON_ANOTHER_DEVICE = """
import json, sys
from pathlib import Path
from fullft_assets.errors import Interrupted
from tests.test_packed import LLAMA, SETTINGS, Stopping, fit, training

chosen = SETTINGS.model_copy(update={"epochs": 2, "checkpoint_every_steps": 3, "max_grad_norm": 1.0})

def run(name, **options):
    folder = Path(sys.argv[1]) / name
    done = fit(LLAMA, training(40), chosen, folder, resumable=True, evaluate_at=None, **options)
    keys = ("step", "loss", "grad_norm", "validation_loss")
    history = [[line.get(key) for key in keys] for line in done.history]
    return next(done.model.parameters()).device.type, history

results = [run("host")]
from tests import remote_device
results.append(run("remote"))
try:
    run("stopped", progress=Stopping(7))
except Interrupted as error:
    results.append(str(error).partition(";")[0])
results.append(run("stopped"))
print(json.dumps(results))
"""


def test_training_scoring_and_resume_on_another_kind_of_device(tmp_path: Path) -> None:
    # The host, too, scores in fp32.
    printed = printed_by("-c", _ON_ANOTHER_DEVICE, tmp_path, timeout=300, env={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    (host, expected), (remote, found), stop, (_, resumed) = json.loads(printed.splitlines()[-1])
    assert (host, remote) == ("cpu", "lazy") and stop == "stopped at step 8 of 10"
    assert [
        [each if each is None else pytest.approx(each, rel=1e-5) for each in line] for line in expected
    ] == found
    assert resumed == found, "the same bits"


#: One layer: most of the time goes to the C++ compiler.
ONE_LAYER = LlamaConfig(**SMALL | {"num_hidden_layers": 1}, pad_token_id=0)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_model_trains_to_the_same_losses(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        lacks("apt-get install g++ python3-dev")
    logs, names = [], []
    for compiles in (False, True):
        done = fit(
            ONE_LAYER,
            training(marked=True),
            SETTINGS.model_copy(update={"compile": compiles}),
            tmp_path / str(compiles),
        )
        logs.append([(line["loss"], line["grad_norm"]) for line in done.history if "loss" in line])
        (layer,) = done.model.base_model.layers
        assert hasattr(layer.forward, "_torchdynamo_orig_callable") is compiles
        done.model.save_pretrained(tmp_path / f"{compiles}-model")
        names.append(set(load_file(tmp_path / f"{compiles}-model" / "model.safetensors")))
    assert np.allclose(logs[0], logs[1], rtol=1e-4) and names[0] == names[1]
