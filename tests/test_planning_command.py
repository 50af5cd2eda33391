"""`fullft plan` on a real snapshot, and the plan of other settings in the planning workload."""

import re
from dataclasses import replace
from unittest.mock import Mock

import pytest

from fullft_assets.cli.plan import plan
from fullft_assets.errors import FullftError, OutOfMemory
from fullft_assets.launch.workloads import planning as workload
from fullft_assets.planning import PlanMetadata
from fullft_assets.planning.plan import peak_on_cpu
from fullft_assets.progress import Progress
from fullft_assets.resources import set_latest
from fullft_assets.training import measuring
from tests.prepared import Prepared


@pytest.mark.slow
def test_the_plan_is_printed_without_weights(tiny: Prepared) -> None:
    with pytest.raises(FullftError, match="no snapshot yet.*`fullft ingest"):
        plan(replace(tiny.use_case, name="other"), tiny.store)
    set_latest(tiny.store, tiny.use_case.name, "training_snapshot", tiny.snapshot)
    lines = plan(tiny.use_case, tiny.store)
    assert any(line.startswith("this machine") for line in lines)
    assert any(line.startswith("p5.48xlarge (8 x H100)") for line in lines)
    assert any(line.startswith("Recommended: this machine") for line in lines)
    for changes, line in (
        ({"min_effective_groups": 1_000}, "No verdict is possible: "),
        ({"max_tolerable_loss": 0.02}, "A first model can be promoted, .* 312 may do so"),
    ):
        release = tiny.use_case.settings.release.model_copy(update=changes)
        settings = tiny.use_case.settings.model_copy(update={"release": release})
        last = plan(replace(tiny.use_case, settings=settings), tiny.store)[-1]
        assert re.match(line, last) and not re.match(line, lines[-1])


@pytest.mark.slow
def test_the_plan_of_the_workload_names_what_fits(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    # With this little memory the pass of the YAML does not fit, a smaller one does.
    planner = measuring.TargetPlanner(tiny.recipe, tiny.use_case.settings, 0)
    settings = tiny.use_case.settings.training
    whole, smallest = (
        planner.memory(
            settings.model_copy(update={"micro_batch_size": rows}), "fp32", is_gpu=False, processes=1
        )
        for rows in (settings.micro_batch_size, 1)
    )
    assert smallest.activations < whole.activations
    small = {"libraries_bytes": 0, "memory_bytes": peak_on_cpu(smallest, 0)}
    here = measuring.this_machine
    monkeypatch.setattr(
        measuring, "this_machine", lambda settings, speed: here(settings, speed).model_copy(update=small)
    )
    monkeypatch.setattr(measuring, "_available_memory_bytes", lambda *processes: 2**20)
    with monkeypatch.context() as patch:
        patch.setattr(workload, "measure", Mock(side_effect=RuntimeError("DefaultCPUAllocator")))
        with pytest.raises(OutOfMemory, match=" fit: training.micro_batch_size: 1$"):
            workload.work(tiny.job("pilot_run", "large"), tiny.store, Progress(silent=True))
    job = tiny.job("pilot_run", "small")
    workload.work(job, tiny.store, Progress(silent=True))
    manifest = tiny.store.find(job.case, "feasibility_plan", job.key)
    assert manifest is not None
    assert " fit: training.micro_batch_size: 1" in manifest.check("fits_in_memory").description
    plan_metadata = PlanMetadata.of(manifest)
    assert plan_metadata.targets
    assert plan_metadata.recommended
    assert plan_metadata.flops > 0
    set_latest(tiny.store, tiny.use_case.name, "training_snapshot", tiny.snapshot)
    set_latest(tiny.store, tiny.use_case.name, "feasibility_plan", manifest)
    assert any(
        "on this machine measured by the last plan" in line for line in plan(tiny.use_case, tiny.store)
    )
