"""The benchmark of a GPU, as far as it runs without one."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--results", str(tmp_path / "results")]) == 1
    assert "no GPU is here" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.long
def test_small_one_resumes_measures_and_stores_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--small", "--results", str(tmp_path)]) == 0
    assert "gpu_resume" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert {"torch", "transformers", "trl"} <= found["versions"].keys() and found["card"]
    resume, memory = found["rows"]
    assert resume["met"] and "resumed from step 3" in resume["notes"][0]
    assert len(memory["rungs"]) == 2
