"""Which kernels a training computes with, and that its checkpoint says so. No GPU takes part: that there is
one is injected where it decides.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import kernels
from fullft_assets.training.recipe import Prepared
from tests import machine
from tests.test_isolation import build
from tests.test_packed import LLAMA

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
#: CI installs it after the other tests, and runs these then.
needs_liger = pytest.mark.skipif(
    not HAS_LIGER, reason="pip install liger-kernel, which Linux alone has Triton for"
)

#: Compares a Llama before and after on packed rows, whole or in parts of processes, in Triton's interpreter,
#: which runs kernels on a CPU. Floats that it hands them as Python's own become scalars of Triton's, as
#: compiled kernels get them, and CUDA's function for 1 / sqrt(x) Triton's own.
_COMPARED = """
import json, numpy, sys, torch
from pathlib import Path
import triton.language as tl
from liger_kernel.ops import rms_norm
from torch.distributed.tensor import DTensor
from triton.runtime import interpreter
from fullft_assets.models.inference import reshard
from fullft_assets.training import kernels, sharding
from tests.shared_models import SHARED
from tests.test_isolation import build
from tests.test_packed import LLAMA, SETTINGS, recipe, training
from tests.two_ranks import play

convert = interpreter._implicit_cvt

def convert_floats(value):
    if not isinstance(value, float):
        return convert(value)
    array = numpy.array([value], dtype=numpy.float32)
    return tl.tensor(interpreter.TensorHandle(array, tl.float32), tl.float32)

interpreter._implicit_cvt = convert_floats
rms_norm.rsqrt = lambda x: tl.rsqrt(x)
kernels.why_not, kernels.move = lambda *_: "", lambda model: None
count = int(sys.argv[2])
settings = SHARED if count > 1 else SETTINGS

def scene(folder, rank):
    torch.set_num_threads(1)
    model = sharding.load(lambda _: build(LLAMA), settings, is_shared=count > 1).eval()
    prepared = recipe(LLAMA, training(8)).prepare(model, settings, 1)
    batch = prepared.feed.batch(0)
    labels = batch.pop("labels")

    def look():
        reshard(model)
        model.zero_grad()
        prepared.total_loss(model, batch, labels).backward()
        grads = [weight.grad for weight in model.parameters()]
        wholes = [each.full_tensor() if isinstance(each, DTensor) else each.clone() for each in grads]
        with torch.no_grad():
            return [*wholes, model(**batch, use_cache=False).logits]

    before = look()
    about = kernels.apply(model, prepared, settings).about
    moved = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(look(), before)]
    names = [m._get_name() for m in model.modules()]
    facts = {"kernels": about["kernels"], "packed": about["is_packed"]}
    return {"moved": max(moved), **facts, "names": names}

print(json.dumps(play(Path(sys.argv[1]), scene, count)))
"""


@pytest.mark.parametrize(
    ("changes", "family", "reason"),
    [
        ({"liger": "off"}, "llama", "training.liger is off"),
        pytest.param({"compile": True}, "llama", "training.compile fuses for itself", marks=needs_liger),
        pytest.param({}, "bert", "liger-kernel has no kernels for bert", marks=needs_liger),
        pytest.param({}, "llama", "", marks=needs_liger),
        pytest.param({}, "qwen3", "", marks=needs_liger),
    ],
)
def test_where_there_is_a_gpu(
    changes: dict, family: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.set_card(monkeypatch)
    assert kernels.why_not(family, TrainingSettings(**changes)) == reason


def test_without_liger_kernel_a_gpu_computes_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.set_card(monkeypatch)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # which hides it
    assert kernels.why_not("llama", TrainingSettings()) == "liger-kernel is not installed"


@needs_liger
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "granite"])
def test_losses_stay_and_layers_are_replaced(family: str) -> None:
    """Also where a family's own default is another."""
    chosen = kernels.switches(family)
    assert not chosen["cross_entropy"] and not chosen["fused_linear_cross_entropy"]
    assert chosen["rms_norm"]
    assert chosen["rope"]
    assert chosen.get("swiglu") or chosen.get("geglu")


@needs_liger
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_release_that_does_not_work_is_reported_and_training_runs_without_it(
    family: str, tmp_path: Path, monkeypatch
) -> None:
    # What the import system makes of a module that fails to load.
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    machine.set_card(monkeypatch)
    reason = kernels.why_not(family, TrainingSettings())
    assert re.search(r"cannot be loaded \(ModuleNotFoundError: .*; install another version$", reason)
    prepared = Prepared(feed=None, total_loss=None, about={"is_packed": True})
    model = SimpleNamespace(config=SimpleNamespace(model_type=family), is_remote_code=lambda: False)
    assert kernels.apply(model, prepared, TrainingSettings()).about == {
        "is_packed": True,
        "kernels": f"torch ({reason})",
    }
    own = SimpleNamespace(config=model.config, is_remote_code=lambda: True)
    assert (
        kernels.apply(own, prepared, TrainingSettings()).about["kernels"]
        == "torch (the model computes by its own code)"
    )


@pytest.fixture
def model_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[PreTrainedModel, Prepared]:
    """A Llama and one pass of packed rows, on a CPU that says it is a GPU."""
    monkeypatch.setattr(kernels, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(kernels, "move", lambda model: None)
    ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, -1)
    feed = SimpleNamespace(batch=lambda number: {"input_ids": ids, "position_ids": positions, "labels": ids})
    return build(LLAMA).eval(), Prepared(feed=feed, total_loss=None)


@needs_liger
@pytest.mark.parametrize(
    ("moved_by", "is_refused"), [(0.0, False), (1e-4, False), (0.1, True), (float("nan"), True)]
)
def test_kernels_that_move_the_outputs_are_refused(
    model_on_a_gpu, moved_by: float, is_refused: bool, monkeypatch
) -> None:
    """What replaces the layers is injected: liger-kernel's own, right on every card tried, would move
    nothing.
    """
    model, prepared = model_on_a_gpu
    chosen: list[dict[str, bool]] = []

    def replace(model: PreTrainedModel, switches: dict[str, bool]) -> None:
        chosen.append(switches)
        model.lm_head.weight.data *= 1 + moved_by

    monkeypatch.setattr(kernels, "apply_liger_kernel", replace)
    settings = TrainingSettings(precision="fp32")
    if is_refused:
        with pytest.raises(
            SettingsError,
            match=r"^training\.liger: liger-kernel \S+ moves .*; set off$",
        ):
            kernels.apply(model, prepared, settings)
    else:
        version = importlib.metadata.version("liger-kernel")
        assert kernels.apply(model, prepared, settings).about == {
            "kernels": f"liger-kernel {version}: rms_norm, rope, swiglu"
        }
    assert chosen == [kernels.switches("llama")]


@needs_liger
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_packed_rows_keep_their_logits_and_gradients(count: int, tmp_path: Path) -> None:
    places = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(places)}
    # `auto` is fp32 then: in bf16 the probe of so small a model says nothing.
    env |= {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPARED, str(tmp_path / "scene"), str(count)],
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if "InterpreterError" in done.stderr:
        machine.lacks(f"this Triton's interpreter cannot run this liger-kernel: {done.stderr[-1_000:]}")
    assert done.returncode == 0, done.stderr[-3_000:]
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found is not None, done.stderr[-3_000:]
        assert found["packed"]
        assert {"LigerRMSNorm", "LigerSwiGLUMLP"} <= set(found["names"])
        assert found["moved"] < 1e-4
        assert re.fullmatch(r"liger-kernel [\d.]+: rms_norm, rope, swiglu", found["kernels"])
