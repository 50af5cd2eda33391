"""Training that fails or nearly does: memory runs out, the disk is full, a stop comes at a bad moment; each
failure under its class.
"""

import errno
import http.client
from pathlib import Path

import botocore.exceptions
import pytest
import torch

from fullft_assets import errors
from fullft_assets.launch import entry
from fullft_assets.launch.contract import EXIT_FIXABLE
from fullft_assets.launch.workloads import training as training_workload
from fullft_assets.progress import ERROR_FILE, Progress, WorkloadFailure
from fullft_assets.tasks.classification import recipe as classification
from fullft_assets.training import guards
from fullft_assets.training.checkpoints import RunHistory, latest_checkpoint
from fullft_assets.training.finetuning import Fit, fine_tune
from tests.machine import limited_files
from tests.optimizer_steps import Stopping, hook_passes
from tests.prepared import QUIET, Prepared, quick

STAGE = "finetuned_checkpoint"


#: Written to no tracker, with a checkpoint after every fourth step.
OFTEN = {"track": [], "checkpoint_every_steps": 4}


def train(case: Prepared, folder: Path, progress: Progress = QUIET, **changes: object) -> Fit:
    return fine_tune(case.recipe, quick(**OFTEN | changes), 17, folder, progress)


def limit_memory(monkeypatch: pytest.MonkeyPatch, rows: int, *, scoring: bool = False) -> list[int]:
    """Raise torch's own error in every pass (of training, or of scoring) of more than so many rows; return
    the sizes of these passes.
    """
    seen = []

    def limit(module: torch.nn.Module, args: object, kwargs: dict, output: object) -> None:
        if module.training is not scoring:
            seen.append(len(kwargs["input_ids"]))
            if seen[-1] > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook_passes(monkeypatch, classification, "load_for_training", limit)
    return seen


class TestOutOfMemory:
    def test_smaller_micro_batches_of_the_same_batch_go_on(self, tiny, tmp_path, monkeypatch):
        straight = train(tiny, tmp_path / "straight", micro_batch_size=2)
        seen = limit_memory(monkeypatch, rows=2)
        fit = train(tiny, tmp_path / "limited")
        assert (fit.micro_batch_size, straight.micro_batch_size) == (2, 2)
        assert [(i.kind, i.step, i.to_step, i.micro_batch_size) for i in fit.incidents] == [
            ("out_of_memory", 1, 0, 4),
            ("out_of_memory", 1, 0, 2),
        ]
        assert seen[:2] == [8, 4]
        # 8 rows a step as before: the same weights as a run that began with micro-batches of 2.
        assert all(
            torch.equal(value, fit.model.state_dict()[name])
            for name, value in straight.model.state_dict().items()
        )

    def test_the_size_that_fits_is_remembered(self, tiny, tmp_path, monkeypatch):
        limit_memory(monkeypatch, rows=4)
        with pytest.raises(errors.Interrupted):
            train(tiny, tmp_path, Stopping(1))
        seen = limit_memory(monkeypatch, rows=4)
        train(tiny, tmp_path)
        assert set(seen[:2]) == {4}

    def test_a_single_row_that_does_not_fit_is_one_line(self, tiny, tmp_path, monkeypatch):
        limit_memory(monkeypatch, rows=0)
        with pytest.raises(
            errors.OutOfMemory,
            match=r" at step 1 .* training\.gradient_checkpointing, ",
        ):
            train(tiny, tmp_path)
        assert [incident.micro_batch_size for incident in RunHistory(tmp_path).incidents] == [4, 2, 1]

    def test_scoring_halves_its_own_batches_and_not_those_of_training(self, tiny, tmp_path, monkeypatch):
        straight = train(tiny, tmp_path / "straight")
        seen = limit_memory(monkeypatch, rows=3, scoring=True)
        fit = train(tiny, tmp_path / "limited")
        assert (fit.micro_batch_size, fit.incidents) == (8, [])
        assert max(seen) > 3
        assert min(seen) <= 3
        # The fit of its head scores as well, in other batches.
        assert fit.scores["validation_loss"] == pytest.approx(straight.scores["validation_loss"], rel=1e-3)
        monkeypatch.undo()
        at_once = tiny.recipe.score(fit.model, QUIET)["loss"]
        assert fit.scores["validation_loss"] == pytest.approx(at_once, rel=1e-4), "of the same weights"

    def test_other_memory_that_scoring_takes_is_reported_as_such(self, tiny, tmp_path, monkeypatch):
        def no_room(*arguments: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(type(tiny.recipe), "score", no_room)
        with pytest.raises(errors.OutOfMemory, match=r"^memory ran out .*\(beside the passes\)"):
            train(tiny, tmp_path)
        assert RunHistory(tmp_path).incidents == []


def test_a_limit_on_the_size_of_files_is_the_same_error(tiny, tmp_path):
    # Weights take 1 MB, the optimizer's state 2: the one fits, the other is cut off.
    message = "no room for the checkpoint of step 4 .*; there is no checkpoint; the same command starts again"
    with limited_files(1_500_000), pytest.raises(errors.DiskError, match=message):
        train(tiny, tmp_path)
    assert latest_checkpoint(tmp_path) is None
    assert train(tiny, tmp_path).resumed_from_step == 0


def test_a_stop_while_the_validation_rows_are_scored_loses_nothing(tiny, tmp_path, monkeypatch):
    straight = train(tiny, tmp_path / "straight")
    scored = [line for line in straight.history if "validation_loss" in line]
    middle, last = (line["step"] for line in scored)
    progress = Progress(silent=True)
    score = classification.score

    def stopped_score(model: object, split: object, between_batches: object) -> object:
        progress.stop_requested = True
        return score(model, split, between_batches)

    with monkeypatch.context() as patch:
        patch.setattr(classification, "score", stopped_score)
        with pytest.raises(errors.Interrupted, match=f"stopped at step {middle} of {last}; "):
            train(tiny, tmp_path / "stopped", progress)
    assert latest_checkpoint(tmp_path / "stopped").name == f"checkpoint-{middle}"
    resumed = train(tiny, tmp_path / "stopped")
    assert resumed.resumed_from_step == middle
    assert [line for line in resumed.history if "validation_loss" in line] == scored
    assert all(
        torch.equal(value, resumed.model.state_dict()[name])
        for name, value in straight.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.DataError("a.csv:3: no label"), "data"),
        (errors.DivergenceError("loss nan"), "divergence"),
        (errors.Interrupted("stopped"), "preemption"),
        (KeyboardInterrupt(), "preemption"),
        (errors.DiskError("no room"), "infrastructure"),
        (OSError(errno.ENOSPC, "No space left on device"), "infrastructure"),
        (ConnectionResetError("peer is gone"), "infrastructure"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "infrastructure"),
        (torch.distributed.DistNetworkError("recv: peer is gone"), "infrastructure"),
        (torch.distributed.DistStoreError("wait timeout"), "infrastructure"),
        (botocore.exceptions.FlexibleChecksumError(error_msg="cut"), "infrastructure"),
        (botocore.exceptions.ResponseStreamingError(error="cut"), "infrastructure"),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), "infrastructure"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://a"), "infrastructure"),
        (http.client.IncompleteRead(b""), "infrastructure"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
            "infrastructure",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (MemoryError(), "out_of_memory"),
        (errors.OutOfMemory("a single row"), "out_of_memory"),
        (errors.SettingsError("training.batch_size"), "settings"),
        (errors.GateError("refused"), "gate"),
        (ValueError("a bug"), "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_failure_has_its_class(error, failure):
    assert errors.classify(error) == failure


class TestReport:
    """A workload that fails tells its launcher its class and its reason."""

    @pytest.fixture
    def reason(self, monkeypatch, tmp_path) -> Path:
        monkeypatch.setattr(entry, "listen_for_stop", lambda progress: None)
        monkeypatch.setenv(ERROR_FILE, str(tmp_path / "reason"))
        return tmp_path / "reason"

    def run(self, case: Prepared, reason: Path, key: str, **training: object) -> tuple[int, WorkloadFailure]:
        job = case.job(STAGE, key, training=dict(quick(**OFTEN | training)))
        return entry.run_job(training_workload.work, job.write(case.store), QUIET), WorkloadFailure.read(
            reason
        )

    def test_a_guard_that_stops(self, tiny, capsys, monkeypatch, reason):
        monkeypatch.setattr(guards.NoProgress, "look", lambda self, metrics: guards.Symptom(1, "flat"))
        code, reported = self.run(tiny, reason, "diverged", guards={"no_progress": "stop"})
        assert code == EXIT_FIXABLE
        assert reported.failure == "divergence"
        assert "guard no_progress: flat" in reported.line
        assert capsys.readouterr().err == reported.line + "\n"

    def test_an_error_that_nobody_foresaw(self, tiny, monkeypatch, capsys, reason):
        def fail(rows: object, pad_id: int) -> None:
            raise ConnectionResetError("gone")

        monkeypatch.setattr(classification, "collate", fail)
        code, reported = self.run(tiny, reason, "crashed")
        assert code == 1
        assert reported.failure == "infrastructure"
        assert " failed: ConnectionResetError at fullft_assets/" in reported.line
        assert "ConnectionResetError: gone" in Path(reported.line.rpartition(" is in ")[2]).read_text()
        printed = capsys.readouterr().err
        assert "Traceback" in printed and "ConnectionResetError: gone" not in printed

    def test_of_ranks_of_a_launcher_the_first_reason_counts(self, tiny, reason):
        uri = tiny.job(STAGE, "launched").write(tiny.store)
        for exception in (torch.OutOfMemoryError("CUDA out of memory"), ConnectionResetError("gone")):
            entry.run_job(lambda *_, exception=exception: (_ for _ in ()).throw(exception), uri, QUIET)
        assert WorkloadFailure.read(reason).failure == "out_of_memory"
