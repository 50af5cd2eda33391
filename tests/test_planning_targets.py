"""The plan on machines that are not there: what fits, how long, at what cost, and which is recommended."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fullft_assets.models.hardware import peak_flops
from fullft_assets.planning.measurements import StepMemory, Work
from fullft_assets.planning.report import plan_lines, recommendation
from fullft_assets.planning.setups import setups
from fullft_assets.planning.target_plans import Extent, TargetPlan, plan_targets, processes_on, recommend, shares, table, yaml_lines
from fullft_assets.planning.targets import Target, hourly_usd_of, targets
from fullft_assets.settings import PlanningSettings, TrainingSettings, UseCaseSettings

pytestmark = pytest.mark.quick

GIB = 2**30
#: A billion weights that read 200 million tokens.
WORK = Work(
    num_parameters=10**9,
    num_trained_parameters=10**9,
    num_rows=300_000,
    num_tokens=200_000_000,
    num_padded_tokens=200_000_000,
    flops=6e9 * 200e6,
)
EXTENT = Extent(work=WORK, num_training_rows=100_000, num_held_out_rows=20_000)
HERE = Target(name="this machine", memory_bytes=8 * GIB, speed=(1e11, 1e11), hourly_usd=0.0, kind="here")


def use_case(planning: dict[str, Any] | None = None, **training: Any) -> UseCaseSettings:
    return UseCaseSettings.model_validate(
        {
            "base_model": "m",
            "documents": {"path": "d"},
            "examples": {"label": "label"},
            "planning": {"max_hours": 1_000, **(planning or {})},
            "training": {"batch_size": 32, "micro_batch_size": 16, **training},
        }
    )


def count(training: TrainingSettings, precision: str, is_gpu: bool, processes: int) -> StepMemory:
    """A model of a billion weights with a GiB of activations for each row of a pass."""
    width = 4 if training.weights == "fp32" else 2
    moments = {"adamw": 2 * width, "adamw_in_backward": 2 * width}.get(training.optimizer, 0)
    gradients = 0 if training.steps_in_backward else width
    activations = training.micro_batch_size * GIB // (8 if training.gradient_checkpointing else 1)
    parts = {"weights": width * 10**9, "gradients": gradients * 10**9, "moments": moments * 10**9, "activations": activations}
    state = (width + gradients + moments) * 10**9
    return StepMemory(**parts, buffers=0, copies=0, largest_layer=10**8, logits=0, peak=state + activations)


def plans(settings: UseCaseSettings) -> dict[str, TargetPlan]:
    return {plan.name: plan for plan in plan_targets(settings, HERE, EXTENT, count, here_precision="fp32")}


def test_every_gpu_of_the_table_has_a_known_peak_and_a_price() -> None:
    found = targets(PlanningSettings())
    assert {"g5.xlarge", "g6.xlarge", "g6e.xlarge", "p4d.24xlarge", "p5.48xlarge", "p5en.48xlarge", "trn2.48xlarge"} <= {
        t.name for t in found
    }
    for target in found:
        assert (target.flops is None) == (target.kind == "price_only")
        assert target.kind == "price_only" or (target.hourly_usd or 0) > 0 and target.memory_bytes > 20 * GIB


def test_instances_without_a_gpu_have_a_price_and_are_no_target() -> None:
    settings = PlanningSettings(price_factor=2.0)
    found = [hourly_usd_of(name, settings) for name in ("m5.xlarge", "c5.9xlarge", "g5.xlarge", "r5.large")]
    assert found == pytest.approx([2 * 0.192, 2 * 1.53, 2 * 1.006, None])
    assert not any(one.name == "m5.xlarge" for one in targets(settings))


def test_own_machines_come_first_and_take_the_peak_of_the_known_gpus() -> None:
    own = {"name": "lab", "gpu": "RTX 4090", "gpus": 2, "memory_gib": 24, "hourly_usd": 0.3}
    settings = PlanningSettings.model_validate({"targets": [own, {**own, "name": "new", "gpu": "X9", "tflops": 500}], "price_factor": 1.25})
    first, second, third, *_ = targets(settings)
    assert (first.name, first.flops, first.hourly_usd) == ("lab", peak_flops("RTX 4090", "bf16"), 0.3)
    assert second.flops == 5e14
    assert third.hourly_usd == pytest.approx(1.25 * 1.006)
    with pytest.raises(ValidationError, match="memory_gb"):
        PlanningSettings.model_validate({"targets": [{**own, "memory_gb": 24}]})


def test_the_ladder_goes_down_until_it_fits() -> None:
    found = plans(use_case())
    assert found["p5.4xlarge"].setup == {} and found["p5.4xlarge"].fits
    assert found["g6e.xlarge"].setup == {} and found["g6e.xlarge"].fits
    # 14.9 GiB of state and 4 rows fit into 21.4 GiB, 8 rows do not.
    assert found["g5.xlarge"].setup == {"micro_batch_size": 4}
    # 8 bytes a weight fit into 8 GiB with recomputed activations.
    assert found["this machine"].setup["optimizer"] == "adafactor"
    assert found["this machine"].peak_gib is not None and found["this machine"].peak_gib <= 8
    assert found["trn1.32xlarge"].fits is None


def test_setups_keep_the_batch_and_contradict_nothing() -> None:
    for processes in (1, 4):
        made = list(setups(use_case().training, processes))
        assert made[0] == use_case().training.model_copy(update={"micro_batch_size": min(16, 32 // processes)})
        assert {setup.batch_size for setup in made} == {32}
        assert any(setup.sharding == "fsdp2" for setup in made) == (processes > 1)
        assert all(setup.micro_batch_size == 32 for setup in made if setup.steps_in_backward)


def test_hours_and_costs_follow_from_the_work() -> None:
    settings = use_case({"pilot_share": 0.5, "retrains_a_year": 3}, epochs=3)
    parts = shares(settings, EXTENT.num_training_rows, EXTENT.num_held_out_rows)
    assert parts.pilot == pytest.approx(0.5 * 15 / 8, rel=0.001)
    assert shares(use_case({"pilot_share": 0.5, "pilot_seeds": 3}), 6_400, 0).pilot == pytest.approx(3 * 0.5 * 15 / 8, rel=0.001)
    assert parts.year == pytest.approx(4 * parts.first)
    plan = plans(settings)["p5.4xlarge"]
    assert plan.hours is not None and plan.usd is not None and plan.year_usd is not None
    fast = WORK.flops / (0.45 * 989e12) / 3600
    assert plan.hours == pytest.approx((fast, 3 * fast))
    assert plan.usd[0] == pytest.approx(fast * 6.88 * parts.first)
    assert plan.year_usd[1] == pytest.approx(4 * plan.usd[1])
    doubled = plans(use_case({"pilot_share": 0.5}, gradient_checkpointing=True))["p5.4xlarge"]
    assert doubled.hours == pytest.approx((fast * 4 / 3, fast * 4))


def test_baselines_that_are_trainings_are_charged_as_such() -> None:
    def of(**more: Any) -> float:
        return shares(use_case(more, epochs=2), EXTENT.num_training_rows, EXTENT.num_held_out_rows).baselines

    probe = of()
    assert of(baselines=["majority", "tfidf", "lora"]) == pytest.approx(probe + 1.26)
    assert of(baselines=["tfidf", "lora"], lora={"epochs": 1}) == pytest.approx(probe + 0.63)
    assert of(baselines=["tfidf", "smaller_model"], smaller_model="small") == pytest.approx(probe + 1)


def test_the_cheapest_that_fits_and_ends_in_time_is_recommended_with_its_yaml() -> None:
    settings = use_case()
    found = list(plans(settings).values())
    # This machine costs nothing, but takes 3,300 hours, twice as long with two passes a step.
    chosen = recommend(found, settings)
    assert chosen is not None and chosen.kind == "table"
    usd = {plan.name: plan.usd[1] for plan in found if plan.usd is not None and plan.kind == "table"}
    assert chosen.name == min(usd, key=usd.__getitem__)
    lines = yaml_lines(chosen, settings.training)
    assert f"  hourly_usd: {chosen.hourly_usd:g}" in lines
    assert recommendation(found, settings).startswith(f"Recommended: {chosen.name}, the cheapest that fits")
    patient = use_case({"max_hours": 100_000})
    assert (found_here := recommend(list(plans(patient).values()), patient)) is not None and found_here.kind == "here"
    none = use_case({"max_hours": 0.001})
    assert recommendation(list(plans(none).values()), none).startswith("No target fits within planning.max_hours (0.001)")


def test_the_table_says_what_is_unknown() -> None:
    settings = use_case({"targets": [{"name": "lab", "gpu": "X9", "memory_gib": 80}]})
    rows = {row["target"]: row for row in table(list(plans(settings).values()))}
    assert rows["lab (1 x X9)"]["training"] == "unknown"
    assert rows["trn2.48xlarge (16 x Trainium2)"]["USD an hour"] == "unknown"
    text = "\n".join(plan_lines(list(plans(settings).values()), settings, "case"))
    assert "check them: https://" in text and "us-east-1" in text


@pytest.mark.parametrize(("gpus", "batch", "processes"), [(8, 32, 8), (8, 12, 6), (4, 1, 1)])
def test_processes_divide_the_batch(gpus: int, batch: int, processes: int) -> None:
    assert processes_on(gpus, batch) == processes
