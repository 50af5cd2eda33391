"""Two real processes hold parts of a model (FSDP2) and train it as one does. With whole models (DDP):
test_packed, test_resume.
"""

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import fsdp
from transformers import AutoModelForCausalLM

from fullft_assets.errors import SettingsError
from fullft_assets.launch.workloads import planning
from fullft_assets.models import precision
from fullft_assets.models.inference import load_classifier
from fullft_assets.progress import Progress
from fullft_assets.settings import UseCaseSettings, contradictions
from fullft_assets.tasks.classification.recipe import score
from fullft_assets.training import ranks, sharding
from fullft_assets.training.finetuning import require
from tests import machine
from tests.prepared import command, prepare
from tests.test_isolation import build
from tests.test_packed import LLAMA, SETTINGS


@pytest.mark.slow
def test_parts_on_two_processes_train_as_one_and_load_anywhere(shared: dict[str, Any]) -> None:
    """Killed, they end with the same weights: test_resume."""
    found = shared["parts"]
    parts = found["parts"]
    offloaded = found["offloaded"]
    assert parts["reduced"] and all(parts["reduced"])
    # The gradients' norm tells a factor that Adam would hide in the weights.
    assert_alike(parts, found["alone"], 1e-3)
    # On CPUs the host's memory is the one that there is.
    assert offloaded["offloads"] == ["CPUOffloadPolicy"] != parts["offloads"]
    assert offloaded["log"] == parts["log"]
    # A layer is one graph: what gathers its weights is in none.
    assert_alike(found["compiled"], parts, 1e-3)
    assert found["compiled"]["graphs"] > parts["graphs"] == found["compiled"]["graph_breaks"] == 0
    # Only sharded training writes them: a silent fall-back to whole models would train the same.
    for trained in (parts, offloaded):
        assert sorted(path.name for path in Path(trained["last"]).glob("*.safetensors")) == [
            "part-00000.safetensors",
            "part-00001.safetensors",
        ]
    of_model = load_file(Path(parts["model"], "model.safetensors"))
    loaded = AutoModelForCausalLM.from_pretrained(parts["model"]).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in of_model.items())
    # The same again with its work done finds it: no step is taken, the model is as it was.
    assert found["again"]["from"] == parts["step"] > 0
    of_again = load_file(Path(found["again"]["model"], "model.safetensors"))
    assert all(torch.equal(of_model[name], value) for name, value in of_again.items())


@pytest.mark.slow
def test_a_classifier_is_sharded_and_written_complete(tmp_path: Path) -> None:
    """BERT, whose embeddings are a unit by its own account, through the workload and in bf16."""
    case = prepare(tmp_path, tiny=True)
    chosen = {
        "sharding": "fsdp2",
        "micro_batch_size": 4,
        "epochs": 0.3,
        "learning_rate": 1e-3,
        "precision": "bf16",
    }
    job = case.job("finetuned_checkpoint", training=chosen, launcher={"processes": 2})
    subprocess.run(
        command("training", job.write(case.store), 2), env=case.project.env(), check=True, timeout=150
    )
    manifest = case.store.find(job.case, job.stage, job.key)
    folder = case.store.folder(manifest) / "model"
    assert np.isfinite(manifest.metadata["validation_loss"])
    loss = score(load_classifier(folder), case.split("validation"))["loss"]
    assert loss == pytest.approx(manifest.metadata["validation_loss"], rel=0.02)


@pytest.mark.parametrize(("chosen", "dtype"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_parts_are_summed_and_returned_in_fp32(
    chosen: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: dict[str, fsdp.MixedPrecisionPolicy] = {}

    def shard(module: torch.nn.Module, **options: Any) -> None:
        policies[type(module).__name__] = options["mp_policy"]

    monkeypatch.setattr(fsdp, "fully_shard", shard)
    sharding.shard(
        build(LLAMA),
        SETTINGS.model_copy(update={"sharding": "fsdp2", "precision": chosen}),
        lambda unit: None,
    )
    assert {(policy.param_dtype, policy.reduce_dtype) for policy in policies.values()} == {
        (dtype, torch.float32)
    }
    outputs = {name: policy.output_dtype for name, policy in policies.items()}
    assert outputs == {"LlamaDecoderLayer": None, "Embedding": None, "LlamaForCausalLM": torch.float32}


@pytest.mark.parametrize(
    ("more", "processes", "message"),
    [
        ({}, 1, "fsdp2 needs more than one process; set launcher.processes to 2 or more"),
        ({"optimizer": "adafactor_in_backward", "micro_batch_size": 16}, 2, "set adamw or adafactor"),
        ({"optimizer": "adafactor", "weights": "bf16"}, 2, None),
        ({"l2_sp": 0.1, "distillation": {"weight": 0.5}, "wise_ft": [0.5]}, 2, None),
        ({"compile": True}, 2, None),
        ({}, 2, None),
        ({"sharding": "fsdp2_offload"}, 2, None),
        ({"sharding": "fsdp2_offload"}, 1, "fsdp2_offload needs more than one process"),
        (
            {"sharding": "fsdp2_offload", "precision": "fp16"},
            2,
            "fp16 is not supported with sharding: fsdp2_offload",
        ),
    ],
)
def test_settings_that_contradict_sharding_are_one_line(
    more: dict, processes: int, message: str | None
) -> None:
    data = {
        "base_model": "m",
        "documents": {"path": "d"},
        "examples": {"label": "l"},
        "training": {"sharding": "fsdp2", **more},
    }
    settings = UseCaseSettings.model_validate({**data, "launcher": {"processes": processes}})
    problems = [problem for _, problem in contradictions(settings.training, processes)]
    assert message in problems[0] if message else not problems
    # The workloads refuse the same, before any work.
    with pytest.raises(SettingsError, match=message) if message else nullcontext():
        require(settings.training.model_copy(update={"micro_batch_size": 8}), processes)


@pytest.mark.parametrize("has_card", [False, True])
def test_the_hosts_memory_is_summed_by_gloo_beside_a_card(
    has_card: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU takes part."""
    backends: list[str] = []
    machine.set_card(monkeypatch, has_card)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, timeout: backends.append(backend)
    )
    ranks.connect()
    assert backends == ["cpu:gloo,cuda:nccl" if has_card else "cpu:gloo"]


def test_offloading_is_refused_where_auto_is_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "resolve", lambda setting: "fp16")
    with pytest.raises(
        SettingsError,
        match=r"^training\.precision: fp16 .* sharding: fsdp2_offload; use fp32, or bf16 ",
    ):
        require(SETTINGS.model_copy(update={"sharding": "fsdp2_offload", "precision": "auto"}), 2)


def test_a_plan_refuses_what_training_would_before_anything_is_measured(tmp_path: Path) -> None:
    case = prepare(tmp_path, tiny=True)
    changes = {
        "training": {"sharding": "fsdp2_offload", "precision": "fp16", "micro_batch_size": 4},
        "launcher": {"processes": 2},
    }
    with pytest.raises(SettingsError, match="training.precision: fp16 .* sharding: fsdp2_offload"):
        planning.work(case.job("pilot_run", **changes), case.store, Progress(silent=True))
    assert case.store.find(case.use_case.name, "feasibility_plan", "k1") is None


def test_plan_and_pilot_of_a_sharded_training_are_of_one_process(tmp_path: Path) -> None:
    case = prepare(tmp_path, tiny=True, planning={"min_predicted_gain": -1.0, "pilot_share": 1.0})
    job = case.job(
        "pilot_run", training={"sharding": "fsdp2", "micro_batch_size": 4}, launcher={"processes": 2}
    )
    planning.work(job, case.store, Progress(silent=True))
    plan, pilot = (case.store.find(job.case, stage, job.key) for stage in ("feasibility_plan", "pilot_run"))
    assert all(check.passed for check in (*plan.checks, *pilot.checks))
    # The other process has half of the 16 bytes a weight.
    whole, found = plan.metadata["peak_memory_bytes"], plan.metadata["peak_memory_gib"] * 2**30
    assert whole - found == pytest.approx(plan.metadata["num_parameters"] * 8)
    assert "2 share its weights" in plan.check("fits_in_memory").description


@pytest.mark.slow
@pytest.mark.long
def test_processes_that_will_share_the_model_share_it_in_plan_and_pilot(tmp_path: Path) -> None:
    case = prepare(tmp_path, tiny=True, planning={"min_predicted_gain": -1.0, "pilot_share": 1.0})
    job = case.job(
        "pilot_run",
        training={
            "sharding": "fsdp2",
            "micro_batch_size": 4,
            "precision": "fp32",
            "l2_sp": 0.01,
            "distillation": {"weight": 0.5},
        },
        launcher={"processes": 2},
    )
    line = command("planning", job.write(case.store), 2)
    done = subprocess.run(
        line, env=case.project.env(), capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    plan, cheaper, pilot = (
        case.store.find(job.case, stage, job.key)
        for stage in ("feasibility_plan", "cheaper_baselines", "pilot_run")
    )
    assert all(check.passed for check in (*plan.checks, *pilot.checks)) and cheaper.metadata["scores"]
    assert plan.metadata["num_processes"] == 2 and plan.metadata["peak_memory_gib"] * 2**30 == pytest.approx(
        plan.metadata["peak_memory_bytes"]
    )
    assert plan.metadata["state_memory_gib"] * 2**30 == plan.metadata["num_parameters"] * 8
    assert all(np.isfinite(point["macro_f1"]) for point in pilot.metadata["learning_curve"])
    # The other process left nothing.
    for stage in ("feasibility_plan", "cheaper_baselines", "pilot_run"):
        assert len(list(Path(case.store.url, job.case, stage, job.key).iterdir())) == 1


def played(module: str, folder: Path) -> dict[str, Any]:
    """What each process of each scene of a module returned; None of one that failed or waited for ever."""
    # `auto` is fp32 then: in bf16 another batch rounds differently.
    printed = machine.printed_by("-m", f"tests.{module}", folder, env={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two processes share a model from loading to export."""
    return played("shared_models", tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks must agree on, where one of them is behind or finds something else."""
    return played("two_ranks", tmp_path_factory.mktemp("scenes"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["language_model", "classifier"])
def test_processes_load_their_parts_of_the_same_weights(shared: dict[str, Any], name: str) -> None:
    [whole], parts = shared[name]["whole"], shared[name]["shared"]
    for each in parts:
        assert each["digests"] == whole["digests"]
        assert each["part"] <= 1.05 * whole["part"] / 2 + 64, "buffers are whole in each"


@pytest.mark.slow
def test_they_write_their_parts_while_training_goes_on(shared: dict[str, Any]) -> None:
    found = shared["checkpoints"]
    planned = [pair for pair in found["straight"]["published"] if pair[0] % 2 == 0]
    assert planned and all(step < taken for step, taken in planned[:-1])
    assert [name for name in found["files"] if name.endswith(".safetensors")] == [
        "part-00000.safetensors",
        "part-00001.safetensors",
    ]


@pytest.mark.slow
def test_as_many_go_on_with_equal_bits_and_more_take_the_same_steps(shared: dict[str, Any]) -> None:
    found = shared["checkpoints"]
    straight = found["straight"]
    assert "stopped at step 5 " in found["stopped"]["stopped"]
    for name, step in (("again", 5), ("damaged", 4)):
        assert found[name]["from"] == step
        assert (found[name]["log"], found[name]["weights"]) == (straight["log"], straight["weights"])
    assert "part-00001.safetensors is damaged; " in str(found["damaged"]["said"])
    assert found["more"]["from"] == 5
    assert_alike(found["more"], straight, 1e-3)


def assert_alike(one: dict[str, Any], other: dict[str, Any], rtol: float) -> None:
    torch.testing.assert_close(torch.tensor(one["log"]), torch.tensor(other["log"]), rtol=rtol, atol=0)


@pytest.mark.slow
def test_the_lower_rungs_step_on_parts_as_on_whole_weights(shared: dict[str, Any]) -> None:
    rungs = shared["rungs"]
    assert_alike(rungs["adafactor fp32"]["straight"], rungs["adafactor fp32"]["alone"], 1e-5)
    for rung in rungs.values():
        assert_alike(rung["straight"], rung["alone"], 0.02)
        assert rung["again"]["from"] == 5
        assert all(rung["again"][name] == rung["straight"][name] for name in ("log", "weights"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["offloaded", "by host", "of a classifier"],
)
def test_levers_against_forgetting_work_on_parts_as_on_whole_weights(
    shared: dict[str, Any], case: str
) -> None:
    alone, parts = (shared["levers"][case][name] for name in ("alone", "shared"))
    assert_alike(parts, alone, 1e-3)
    assert {*parts["alphas"]} == {*alone["alphas"]}
    for found in parts["scores"]:
        assert found == pytest.approx(alone["scores"][0], rel=1e-3, abs=1e-6)
    for name, weight in alone["weights"].items():
        # Softmax takes no notice of a key's bias: its gradient is rounding, and a step of Adam has its sign.
        assert name.endswith("key.bias") or np.allclose(parts["weights"][name], weight, rtol=0, atol=2e-4), (
            name
        )


@pytest.mark.slow
def test_each_host_has_all_parts_of_which_one_copy_is_saved(shared: dict[str, Any]) -> None:
    found = shared["by_host"]
    straight = found["straight"]
    assert straight["parts"][:2] == straight["parts"][2:] and len(set(straight["parts"])) == 2
    assert found["files"] == ["part-00000.safetensors", "part-00001.safetensors"]
    assert found["again"]["from"] == found["fewer"]["from"] == 5
    assert all(found["again"][name] == straight[name] for name in ("log", "weights", "parts"))
    for other in (found["fewer"], shared["rungs"]["adafactor"]["straight"]):
        assert_alike(other, straight, 0.02)


@pytest.mark.slow
def test_they_score_the_base_model_together(shared: dict[str, Any]) -> None:
    [whole], parts = shared["base_model"]["whole"], shared["base_model"]["shared"]
    for each in parts:
        assert each["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert each["num_passes"] == -(-whole["num_passes"] // 2) > 1, "each makes its share"


@pytest.mark.slow
def test_they_evaluate_language_models_together(shared: dict[str, Any]) -> None:
    whole, together = (shared["evaluation"][name] for name in ("whole", "shared"))
    assert together["answers"] == whole["answers"]
    for name, losses in whole["losses"].items():
        assert together["losses"][name] == pytest.approx(losses, rel=1e-4)
    # One without a pass of its own makes the last one again.
    assert all(number <= whole["num_passes"][0] / 2 + 1 for number in together["num_passes"])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multi_label", "token_classification"])
def test_they_plan_and_evaluate_encoders_together(task: str, shared: dict[str, Any]) -> None:
    whole, together = (shared["stages"][task][name] for name in ("whole", "shared"))
    assert together["scores"] == pytest.approx(whole["scores"], abs=1e-3)
    assert together["pilot"] == pytest.approx(whole["pilot"], abs=1e-3)
    assert together["rows"].keys() == whole["rows"].keys()
    for name, values in whole["rows"].items():
        is_measured = isinstance(values[0], float)
        assert together["rows"][name] == (
            pytest.approx(values, rel=1e-3, abs=1e-5) if is_measured else values
        )


@pytest.mark.slow
def test_ranks_roll_back_to_the_same_checkpoint_whenever_the_history_is_written(behind: dict) -> None:
    for found in behind["roll_back"]:
        assert found["segments"] == [0, 2]
        assert found["incidents"] == [["roll_back", 5, 2]]
        assert found["steps"] > 5


@pytest.mark.slow
def test_a_stop_that_one_rank_hears_ends_the_scoring_of_all_and_a_checkpoint_is_written(behind: dict) -> None:
    for found in behind["stop_while_scoring"]:
        assert found["said"].startswith("stopped at step 2 ")
        assert found["left"] == ["checkpoint-1", "checkpoint-2"]
        assert found["from"] == 2
        assert found["steps"][0] == 2
        assert len(found["steps"]) == 2
        assert found["scored"] == ["begun", *["begun", "done"] * 2]


@pytest.mark.slow
def test_the_first_rank_decides_and_alone_loads_the_best_checkpoint(behind: dict) -> None:
    """It alone has the trained model; another one's host may not have that checkpoint, or the folder may be
    gone by then.
    """
    scores = {"best": 1, "scores": [2.0] * 5}
    assert behind["keep_best"] == [{**scores, "loaded": ["checkpoint-1"]}, {**scores, "loaded": []}]


@pytest.mark.slow
def test_ranks_with_whole_models_score_together(behind: dict) -> None:
    for found in behind["score_together"]:
        scores, num_passes = found["alone"]
        assert found["together"] == [scores, -(-num_passes // 2)] and num_passes > 4
        assert found["less_memory"][0] == pytest.approx(scores, rel=1e-6)
        assert found["less_memory"][1] > found["together"][1]


@pytest.mark.slow
def test_ranks_that_see_different_checkpoints_do_not_wait_for_each_other(behind: dict) -> None:
    for said in behind["own_disks"]:
        assert "see the same checkpoints (" in said
