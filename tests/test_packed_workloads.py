"""The tasks sft and language_modeling through the workloads: plan, baseline, pilot, checkpoint; killed and
launched again.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fullft_assets.checkpoint import read_step_log
from fullft_assets.launch import entry
from fullft_assets.launch.contract import EXIT_FIXABLE
from fullft_assets.launch.workloads import planning, training
from fullft_assets.models import precision
from fullft_assets.models.inference import load_causal
from fullft_assets.models.token_loss import score_documents
from fullft_assets.progress import Progress
from fullft_assets.snapshot import load_training
from tests import smollm2
from tests.prepared import Prepared, prepare_language_model

STAGE = "finetuned_checkpoint"
QUICK: dict[str, Any] = {
    # One that licences have.
    "chunks": {"max_tokens": 32, "added_tokens": ["sublicense"]},
    "snapshot": {"max_validation_rows": 4},
    "training": {
        "epochs": 1,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "checkpoint_every_steps": 3,
    },
}


@pytest.fixture(scope="module", params=["language_modeling", "sft"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_language_model(tmp_path_factory.mktemp(request.param), request.param, rows=80, **QUICK)


def test_a_base_in_bf16_gets_a_checkpoint_in_bf16_that_is_scored_as_it_is_written(
    case: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16_units", lambda: False)
    shutil.copytree(case.base_model, tmp_path / "model")
    load_causal(case.base_model, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    settings = case.use_case.settings.model_copy(update={"base_model": str(tmp_path / "model")})
    made = replace(case, use_case=replace(case.use_case, settings=settings)).train("bf16")
    folder = case.store.folder(made) / "model"
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    validation = case.split("validation")
    again = score_documents(
        load_causal(folder, dtype=torch.float32), validation.chunks, validation.marks
    ).mean_loss()
    assert made.metadata["validation_loss"] == pytest.approx(again, rel=1e-6)
    assert read_step_log(case.store.folder(made))[-1]["validation_loss"] != pytest.approx(again, rel=1e-6), (
        "that of the fp32 weights"
    )


def test_checkpoint_says_how_well_it_predicts_and_how_it_was_fed(
    case: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16_units", lambda: False)
    made = case.train("once")
    data = load_training(case.store, case.snapshot)
    found = made.metadata
    assert (found["labels"], found["is_packed"], found["num_tokens"]) == ([], True, data.packing.num_tokens)
    assert found["isolation"].startswith("documents that share a row of llama do not move one another")
    assert not {"validation_accuracy", "validation_macro_f1"} & set(found)
    folder, validation = case.store.folder(made), case.split("validation")
    assert load_causal(folder / "model").get_input_embeddings().num_embeddings == 49_153
    again = score_documents(load_causal(folder / "model"), validation.chunks, validation.marks)
    assert found["validation_loss"] == pytest.approx(again.mean_loss(), rel=1e-5)
    assert found["validation_token_probability"] == pytest.approx(again.token_probability(), rel=1e-4)
    assert found["validation_token_accuracy"] == pytest.approx(again.token_accuracy())
    assert made.check("loss_is_falling").passed
    # Conversations are scored by their answers alone.
    assert again.num_tokens.sum() < sum(len(w) for d in validation.chunks for w in d) * (
        1 if validation.marks is None else 0.5
    )
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (folder / "model").iterdir()
    }


def write_model(folder: Path, **config: int) -> None:
    smollm2.write_tokenizer(folder)
    small = {
        "vocab_size": 49_152,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    LlamaForCausalLM(LlamaConfig(**small | config)).save_pretrained(folder)


@pytest.mark.parametrize("case", ["sft"], indirect=True)
class TestRefusals:
    @pytest.fixture(autouse=True)
    def _leave_signals_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(entry, "listen_for_stop", lambda progress: None)

    @pytest.mark.parametrize(
        ("config", "chunks", "line"),
        [
            (
                {},
                {"added_tokens": []},
                "made with another tokenizer than base_model's with chunks.added_tokens; `fullft run",
            ),
            (
                {"max_position_embeddings": 16},
                {},
                "chunks.max_tokens: 32 is more than the 16 positions of base_model",
            ),
        ],
        ids=["tokenizer", "positions"],
    )
    def test_another_model_than_the_snapshots_is_one_line(
        self, case: Prepared, tmp_path: Path, config: dict, chunks: dict, line: str, capsys
    ) -> None:
        write_model(tmp_path, **config)
        for stage, workload in ((STAGE, training), ("pilot_run", planning)):
            job = case.job(stage, f"refused-{tmp_path.name}", chunks=chunks)
            job = job.model_copy(
                update={"settings": job.settings.model_copy(update={"base_model": str(tmp_path)})}
            )
            capsys.readouterr()
            assert entry.run_job(workload.work, job.write(case.store), Progress(silent=True)) == EXIT_FIXABLE
            [said] = capsys.readouterr().err.strip().splitlines()[-1:]
            assert line in said
            assert case.store.find(job.case, "feasibility_plan", job.key) is None

    def test_fewer_rows_than_two_batches_are_one_line(self, case: Prepared, capsys) -> None:
        job = case.job("pilot_run", "refused", training={"batch_size": 1_000})
        assert entry.run_job(planning.work, job.write(case.store), Progress(silent=True)) == EXIT_FIXABLE
        assert "two batches of 1,000" in capsys.readouterr().err
