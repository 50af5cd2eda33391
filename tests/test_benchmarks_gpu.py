"""The benchmark of a GPU, as far as it runs without one."""

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
