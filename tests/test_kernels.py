"""Which kernels a training computes with, and that its checkpoint says so. No GPU takes part: that there is one is injected where it decides."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fullft_assets.errors import SettingsError
from fullft_assets.settings import TrainingSettings, UseCaseSettings
from fullft_assets.training import key_settings
from fullft_assets.workloads import kernels
from tests.test_packed import LLAMA, SETTINGS, fit, training

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
needs_liger = pytest.mark.skipif(not HAS_LIGER, reason="pip install liger-kernel triton")

#: Compares a Llama before and after on packed rows, in Triton's interpreter, which runs kernels on a CPU.
_COMPARED = """
import json, torch
from transformers.integrations.liger import apply_liger_kernel
from fullft_assets.workloads import kernels
from tests.test_isolation import build
from tests.test_packed import LLAMA

model = build(LLAMA).eval()
ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(1))
positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, -1)

def look():
    model.zero_grad()
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return [logits.detach(), *(weight.grad.clone() for weight in model.parameters())]

before = look()
apply_liger_kernel(model, kernels.switches("llama"))
after = look()
names = {type(module).__name__ if "forward" not in vars(module) else module._get_name() for module in model.modules()}
print(json.dumps({"moved": max((a - b).abs().max().item() for a, b in zip(after, before)), "names": sorted(names)}))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's GPU may have the kernels")
def test_on_a_cpu_the_kernels_are_torchs_and_the_checkpoint_says_so(tmp_path: Path) -> None:
    for chosen, reason in (("auto", "liger-kernel needs a GPU"), ("off", "training.liger is off")):
        done = fit(LLAMA, training(8), SETTINGS.model_copy(update={"liger": chosen}), tmp_path / chosen)
        assert done.about["kernels"] == f"torch ({reason})"


@pytest.mark.parametrize(
    ("changes", "family", "reason"),
    [
        ({"liger": "off"}, "llama", "training.liger is off"),
        pytest.param({}, "llama", "liger-kernel is not installed", marks=pytest.mark.skipif(HAS_LIGER, reason="it is")),
        pytest.param({"compile": True}, "llama", "training.compile fuses for itself", marks=needs_liger),
        pytest.param({"sharding": "fsdp2"}, "llama", "liger-kernel was not tried with training.sharding", marks=needs_liger),
        pytest.param({}, "bert", "liger-kernel knows no bert", marks=needs_liger),
        pytest.param({}, "llama", "", marks=needs_liger),
        pytest.param({}, "qwen3", "", marks=needs_liger),
    ],
)
def test_where_there_is_a_gpu(changes: dict, family: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernels.why_not(family, TrainingSettings(**changes)) == reason


@needs_liger
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "granite"])
def test_losses_are_left_out_and_layers_replaced(family: str) -> None:
    """Also where a family's own default is another."""
    told = kernels.switches(family)
    assert not told["cross_entropy"] and not told["fused_linear_cross_entropy"]
    assert told["rms_norm"] and told["rope"] and (told.get("swiglu") or told.get("geglu"))


@needs_liger
def test_a_release_that_does_not_go_with_transformers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the import system makes of a module that fails to load.
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    with pytest.raises(
        SettingsError, match=r"^training\.liger: liger-kernel cannot be loaded \(.*\); install another version, or set off$"
    ):
        kernels.families()


@needs_liger
@pytest.mark.slow
def test_packed_rows_keep_their_logits_and_gradients() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", _COMPARED], env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"LigerRMSNorm", "LigerSwiGLUMLP"} <= set(found["names"]) and found["moved"] < 1e-4


def test_the_setting_is_part_of_the_key_unless_it_is_the_default() -> None:
    data = {"base_model": "m", "documents": {"path": "d"}, "examples": {"label": "l"}}
    of = {name: key_settings(UseCaseSettings.model_validate({**data, "training": chosen})) for name, chosen in
          (("default", {}), ("auto", {"liger": "auto"}), ("off", {"liger": False}))}  # fmt: skip
    assert of["default"] == of["auto"] != of["off"] and "liger" not in of["default"]["training"]
