"""`fullft plan` on a real snapshot, and `planning.apply: recommended` in the planning workload."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fullft_assets.assets.case import Case
from fullft_assets.assets.training import training_key, with_applied
from fullft_assets.cli.plan import plan
from fullft_assets.errors import FullftError
from fullft_assets.jobs.progress import Progress
from fullft_assets.planning import PlanMetadata
from fullft_assets.planning.footprint import peak_on_cpu
from fullft_assets.resources import set_latest
from fullft_assets.training import targets
from fullft_assets.workloads import planning as workload
from tests.prepared import Prepared, prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("plan"), tiny=True)


@pytest.mark.slow
def test_the_plan_is_printed_without_weights(prepared: Prepared) -> None:
    with pytest.raises(FullftError, match="has no snapshot yet.*`fullft ingest"):
        plan(prepared.use_case, prepared.store)
    set_latest(prepared.store, prepared.use_case.name, "training_snapshot", prepared.snapshot)
    lines = plan(prepared.use_case, prepared.store, with_ladder=True)
    assert any(line.startswith("this machine") for line in lines)
    assert any(line.startswith("p5.48xlarge (8 x H100)") for line in lines)
    assert any(line.startswith("adafactor_in_backward, bf16") for line in lines)
    assert any(line.startswith("Recommended: this machine") for line in lines)
    assert not any(line.startswith("No verdict is possible") for line in lines)
    release = prepared.use_case.settings.release.model_copy(update={"min_effective_groups": 1_000})
    strict = replace(
        prepared.use_case, settings=prepared.use_case.settings.model_copy(update={"release": release})
    )
    assert plan(strict, prepared.store)[-1].startswith("No verdict is possible: ")


@pytest.mark.slow
def test_recommended_settings_reach_plan_and_training(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this little memory the pass of the YAML does not fit, a smaller one does.
    planner = targets.TargetPlanner(prepared.recipe, prepared.use_case.settings, 0)
    yaml_rows = prepared.use_case.settings.training.micro_batch_size
    as_it_is, half = (planner._count(prepared.use_case.settings.training.model_copy(update={"micro_batch_size": rows}), "fp32", False, 1)
                      for rows in (yaml_rows, 1))  # fmt: skip
    assert half.passing < as_it_is.passing
    small = {"libraries_bytes": 0, "memory_bytes": peak_on_cpu(half, 0)}
    here = targets.this_machine
    monkeypatch.setattr(
        targets, "this_machine", lambda settings, speed: here(settings, speed).model_copy(update=small)
    )
    job = prepared.job("pilot_run", "recommended", planning={"apply": "recommended"})
    changed, applied = workload._with_recommended(job, prepared.recipe, Progress(silent=True))
    assert applied and changed.settings.training.micro_batch_size < yaml_rows
    assert (
        workload._with_recommended(
            prepared.job("pilot_run", "as_it_is"), prepared.recipe, Progress(silent=True)
        )[1]
        == {}
    )
    monkeypatch.undo()
    workload.work(job, prepared.store, Progress(silent=True))
    made = prepared.store.find(job.case, "feasibility_plan", job.key)
    assert made is not None
    found = PlanMetadata.of(made)
    assert found.targets and found.recommended and found.flops > 0
    set_latest(prepared.store, prepared.use_case.name, "training_snapshot", prepared.snapshot)
    set_latest(prepared.store, prepared.use_case.name, "feasibility_plan", made)
    assert any(
        "on this machine measured by the last plan" in line
        for line in plan(prepared.use_case, prepared.store)
    )
    case = Case(prepared.use_case)
    with_other = made.model_copy(update={"metadata": {**made.metadata, "applied": applied}})
    assert with_applied(case, with_other).settings.training.micro_batch_size == applied["micro_batch_size"]
    assert training_key(with_applied(case, with_other), prepared.snapshot, "r") != training_key(
        case, prepared.snapshot, "r"
    )
    assert with_applied(case, made.model_copy(update={"metadata": {**made.metadata, "applied": {}}})) is case
