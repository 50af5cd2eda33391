"""Training on an accelerator of another kind than CUDA, in a process of its own: `tests.remote_device`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_distributed import ROOT

pytestmark = pytest.mark.numeric

_SCRIPT = """
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
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    (host, expected), (remote, found), stop, (_, resumed) = json.loads(done.stdout.splitlines()[-1])
    assert (host, remote) == ("cpu", "lazy") and stop == "stopped at step 8 of 10"
    assert [
        [each if each is None else pytest.approx(each, rel=1e-5) for each in line] for line in expected
    ] == found
    assert resumed == found, "the same bits"
