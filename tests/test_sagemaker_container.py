"""The first process of a container of a SageMaker job: why its host failed."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from probe_workloads.definitions import probe_job

from fullft_assets.launchers import Status, sagemaker_container
from fullft_assets.launchers.machine import OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("recorded", "at", "failure"),
    [
        (None, 0, "out_of_memory"),
        ("infrastructure", 11, "out_of_memory"),
        ("unknown", 11, "out_of_memory"),
        ("data", 11, "data"),
        ("data", 9, "out_of_memory"),
    ],
)
def test_memory_that_ran_out_on_a_host_is_the_cause_of_what_other_hosts_lost(
    tmp_path: Path, recorded, at, failure
):
    job, store = probe_job(tmp_path, "trains")
    name = "failures/probe/trains/k1.json"
    if recorded is not None:
        store.write_json(name, {"failure": recorded, "reason": "lost a rank", "at": at})
    own = OUT_OF_MEMORY
    here = sagemaker_container._recorded(job.arguments(store), 10, own) or own
    peer = sagemaker_container._recorded(
        job.arguments(store), 10, Status("failed", "lost a rank", "infrastructure", is_own_line=True)
    )
    assert peer is not None and here.failure == peer.failure == failure
    assert (store.read_json(name) or {})["failure"] == failure
    assert failure == "data" or peer.reason.startswith("the workload was killed: memory ran out")


def test_why_it_failed_fits_into_what_sagemaker_keeps_with_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {"version": importlib.metadata.version("fullft-assets"), "gpus": "0"}
    (tmp_path / "input/config").mkdir(parents=True)
    (tmp_path / "input/config/hyperparameters.json").write_text(json.dumps(asked))
    (tmp_path / "input/config/resourceconfig.json").write_text(
        json.dumps({"hosts": ["algo-1"], "current_host": "algo-1"})
    )
    monkeypatch.setenv("FULLFT_OPT_ML", str(tmp_path))
    ended = Status("failed", "Größe " * 300, "data", is_own_line=True)
    monkeypatch.setattr(sagemaker_container, "_run", lambda *_: (3, ended))
    assert sagemaker_container.main() == 3
    kept = (tmp_path / "output/failure").read_bytes()[:1024].decode()
    assert kept.startswith("Größe Größe ") and kept.endswith(" [data]")
