"""The plan on machines that are not there: what fits, how long, at what cost, and which is recommended."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fullft_assets.models.hardware import peak_flops
from fullft_assets.planning.metadata import StepMemory, Work
from fullft_assets.planning.targets import (
    Target,
    TargetPlan,
    hourly_usd_of,
    plan_targets,
    recommend,
    recommendation,
    setups,
    shares,
    targets,
    yaml_lines,
)
from fullft_assets.settings import PlanningSettings, RetrainingSettings, TrainingSettings, UseCaseSettings

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
#: Rows of an epoch, and validation and test rows.
ROWS = 100_000, 20_000
HERE = Target(name="this machine", memory_bytes=9 * GIB, speed=(1e11, 1e11), hourly_usd=0.0, kind="here")


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
    width, share = (4 if training.weights == "fp32" else 2), (1 if training.sharding == "none" else processes)
    moments = 2 * width if training.optimizer == "adamw" else 0
    gradients = 0 if training.steps_in_backward else width
    parts = {
        "weights": width * 10**9 // share,
        "gradients": gradients * 10**9 // share,
        "moments": moments * 10**9 // share,
        "activations": (training.micro_batch_size * GIB // (8 if training.gradient_checkpointing else 1)),
    }
    return StepMemory(**parts, buffers=0, copies=0, peak=sum(parts.values()))


def plans(settings: UseCaseSettings) -> dict[str, TargetPlan]:
    found = plan_targets(settings, HERE, WORK, shares(settings, *ROWS), count, here_precision="fp32")
    return {plan.target.name: plan for plan in found}


def test_every_gpu_of_the_table_has_a_known_peak_and_a_price() -> None:
    found = targets(PlanningSettings())
    assert {
        "g5.xlarge",
        "g6.xlarge",
        "g6e.xlarge",
        "p4d.24xlarge",
        "p5.48xlarge",
        "p5en.48xlarge",
        "trn2.48xlarge",
    } <= {t.name for t in found}
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
    first, second, *_ = targets(PlanningSettings.model_validate({"targets": [own], "price_factor": 1.25}))
    assert (first.name, first.flops, first.hourly_usd) == ("lab", peak_flops("RTX 4090", "bf16"), 0.3)
    assert second.hourly_usd == pytest.approx(1.25 * 1.006)
    with pytest.raises(ValidationError, match="memory_gb"):
        PlanningSettings.model_validate({"targets": [{**own, "memory_gb": 24}]})


def test_the_ladder_goes_down_until_it_fits() -> None:
    found = plans(use_case())
    assert found["p5.4xlarge"].setup == {} and found["p5.4xlarge"].fits
    assert found["g6e.xlarge"].setup == {} and found["g6e.xlarge"].fits
    # 14.9 GiB of state and 4 rows fit into 21.4 GiB, 8 rows do not.
    assert found["g5.xlarge"].setup == {"micro_batch_size": 4}
    # 8 bytes a weight fit into 9 GiB with recomputed activations.
    assert found["this machine"].setup["optimizer"] == "adafactor"
    assert found["this machine"].peak_gib is not None and found["this machine"].peak_gib <= 9
    assert found["trn1.32xlarge"].fits is None
    # What a GPU is counted to take needs no line in the YAML, what a CPU takes does.
    by_itself = plans(use_case(micro_batch_size="auto"))
    assert (
        by_itself["this machine"].setup == found["this machine"].setup != by_itself["g5.xlarge"].setup == {}
    )


def test_hosts_with_all_parts_each_share_inside_of_a_host() -> None:
    here = HERE.model_copy(update={"gpu": "H100", "gpus": 4, "memory_bytes": 80 * GIB})

    def peak(sharding: str, nodes: int, processes: int = 8, batch_size: int = 32) -> float | None:
        launcher = {
            "kind": "kubernetes",
            "image": f"i@sha256:{64 * 'a'}",
            "nodes": nodes,
            "processes": processes,
        }
        settings = use_case(sharding=sharding, batch_size=batch_size, micro_batch_size=4)
        settings = UseCaseSettings.model_validate(settings.model_dump() | {"launcher": launcher})
        return plan_targets(settings, here, WORK, shares(settings, *ROWS), count, here_precision="bf16")[
            0
        ].peak_gib

    assert peak("fsdp2", 1, 4, 16) == peak("fsdp2_by_host", 2) != peak("fsdp2_by_host", 1) == peak("fsdp2", 2)


@pytest.mark.parametrize(
    ("hours", "recommended"), [((4.0, 15.0), "g6.xlarge"), ((0.05, 0.2), "this machine")]
)
def test_time_counts_beside_the_price(hours: tuple[float, float], recommended: str) -> None:
    """Hours on a machine that costs nothing are no advice where a GPU takes minutes for cents; minutes
    are.
    """
    here = TargetPlan(target=HERE, fits=True, hours=hours, usd=(0.0, 0.0))
    chosen = recommend(
        [
            here,
            TargetPlan(
                target=Target(name="g6.xlarge", gpu="L4", hourly_usd=0.8),
                fits=True,
                hours=(0.03, 0.2),
                usd=(0.04, 0.27),
            ),
        ],
        use_case(),
    )
    assert chosen is not None and chosen.target.name == recommended


#: Of the catalogue's rows of us-east-1, and one of another region.
CATALOG = """package pricing

// generated at 2026-07-20T13:44:30Z for us-east-1

var InitialOnDemandPricesAWS = map[string]map[ec2types.InstanceType]float64{
\t// eu-west-3
\t"eu-west-3": {
\t\t"g6.2xlarge": 1.240950,
\t},
\t// us-east-1
\t"us-east-1": {
\t\t// c3 family
\t\t"c3.2xlarge": 0.420000, "c3.large": 0.105000,
\t\t"g6.2xlarge": 0.977600, "p6-b200.48xlarge": 113.932800,
\t},
}
"""


def test_the_table_of_prices_is_written_from_a_catalogue_with_its_date() -> None:
    prices = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "docs" / "generate_prices.py")))
    written = prices.TABLE.read_text(encoding="utf-8")
    assert prices.render(yaml.safe_load(written)) == written, "by nobody's hand"
    assert re.search(r"^date: \d{4}-\d\d-\d\d$", written, re.MULTILINE) and re.search(
        r"^source: https://", written, re.MULTILINE
    )
    gpu = {"name": "g6.2xlarge", "gpu": "L4", "gpus": 1, "memory_mib": 22888, "hourly_usd": 1.0}
    known = {
        "date": "2000-01-01",
        "region": "us-east-1, Linux",
        "page": "p",
        "source": "s",
        "spot": [0, 1],
        "instances": [gpu],
        "price_only": [{"name": "trn2.48xlarge", "chip": "Trainium2", "chips": 16, "hourly_usd": None}],
        "cpus": [{"name": "c3.large", "hourly_usd": 1.0}],
    }
    found = prices.updated(known, CATALOG, "a.go")
    assert found["date"] == "2026-07-20"
    assert found["source"] == "a.go"
    assert [found[name][0]["hourly_usd"] for name in ("instances", "price_only", "cpus")] == [
        0.9776,
        None,
        0.105,
    ]
    read = yaml.safe_load(prices.render(found))
    assert {**read, "date": str(read["date"])} == found
    with pytest.raises(ValueError, match="g6.3xlarge is not in the catalogue"):
        prices.updated({**known, "instances": [{**gpu, "name": "g6.3xlarge"}]}, CATALOG, "a.go")
    with pytest.raises(ValueError, match="a.go has no date"):
        prices.updated(known, "InstanceType,Price", "a.go")


def test_setups_keep_the_batch_and_contradict_nothing() -> None:
    for processes in (1, 4):
        made = list(setups(use_case().training, processes))
        assert made[0] == use_case().training.model_copy(
            update={"micro_batch_size": min(16, 32 // processes)}
        )
        assert {setup.batch_size for setup in made} == {32}
        assert any(setup.sharding == "fsdp2" for setup in made) == (processes > 1)
        assert all(setup.micro_batch_size == 32 for setup in made if setup.steps_in_backward)
        assert [
            setup.sharding for setup in made if (setup.optimizer, setup.weights) == ("adafactor", "bf16")
        ] == (["fsdp2", "none"] if processes > 1 else ["none"])


def test_hours_and_costs_follow_from_the_work() -> None:
    settings = use_case({"pilot_share": 0.5}, epochs=3).model_copy(
        update={"retraining": RetrainingSettings(max_age_days=365 / 3)}
    )
    parts = shares(settings, *ROWS)
    assert parts.pilot == pytest.approx(0.5, rel=0.001)
    assert parts.year == pytest.approx(4 * parts.first)
    plan = plans(settings)["p5.4xlarge"]
    assert plan.hours is not None and plan.usd is not None
    assert plan.year_usd is not None
    fast = WORK.flops / (0.45 * 989e12) / 3600
    assert plan.hours == pytest.approx((fast, 3 * fast))
    assert plan.usd[0] == pytest.approx(fast * 6.88 * parts.first)
    assert plan.year_usd[1] == pytest.approx(4 * plan.usd[1])
    doubled = plans(use_case({"pilot_share": 0.5}, gradient_checkpointing=True))["p5.4xlarge"]
    assert doubled.hours == pytest.approx((fast * 4 / 3, fast * 4))


def test_baselines_that_are_trainings_are_charged_as_such() -> None:
    def of(**more: Any) -> float:
        return shares(use_case(more, epochs=2), *ROWS).baselines

    assert of(baselines=["majority", "tfidf", "lora"]) == pytest.approx(of() + 1.26)


def test_lora_on_the_pilots_rows_is_charged_where_it_is_cheap_and_not_a_baseline_on_all() -> None:
    def of(share: float = 0.1, **more: Any) -> float:
        return shares(use_case({"pilot_share": share, **more}), 10_000, 0).pilot

    assert of() == pytest.approx(0.1 * 2.26)
    assert of(0.3) == pytest.approx(0.3)
    assert of(baselines=["majority", "lora"]) == pytest.approx(0.1)


def test_the_cheapest_that_fits_and_ends_in_time_is_recommended_with_its_yaml() -> None:
    settings = use_case()
    found = list(plans(settings).values())
    # This machine costs nothing, but takes 3,300 hours, twice as long with two passes a step.
    chosen = recommend(found, settings)
    assert chosen is not None and chosen.target.kind == "table"
    usd = {
        plan.target.name: plan.usd[1] + plan.hours[1]
        for plan in found
        if plan.usd and plan.hours and plan.target.kind == "table"
    }
    assert chosen.target.name == min(usd, key=usd.__getitem__)
    assert f"  hourly_usd: {chosen.target.hourly_usd:g}" in yaml_lines(chosen, settings.training)
    assert recommendation(found, settings).startswith(f"Recommended: {chosen.target.name} (")
    none = use_case({"max_hours": 0.001})
    assert recommendation(list(plans(none).values()), none).startswith(
        "No target fits within planning.max_hours (0.001)"
    )
