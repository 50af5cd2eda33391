"""Fine-tuning on real licence texts: the planned order, what is trained, what is logged, what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from fullft_assets import checkpoint as checkpoint_key
from fullft_assets.errors import DivergenceError, Interrupted, SettingsError
from fullft_assets.models.inference import load_for_training
from fullft_assets.planning.metadata import StepMemory
from fullft_assets.planning.plan import GIB
from fullft_assets.settings import TrainingSettings
from fullft_assets.tasks.classification import recipe as classification
from fullft_assets.training import checkpoints, measuring
from fullft_assets.training.finetuning import Fit, fine_tune
from fullft_assets.training.loop import accumulation_steps
from tests.optimizer_steps import Stopping, without_dropout
from tests.prepared import QUIET, Prepared, prepare, quick

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def fitted(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """The real MiniLM, one epoch over 250 real texts or so."""
    return train(
        prepared, tmp_path_factory.mktemp("work"), prepared.use_case.settings.training, resumable=False
    )


def train(case: Prepared, folder: Path, chosen: TrainingSettings, **options: object) -> Fit:
    return fine_tune(case.recipe, chosen, work_folder=folder, **{"seed": 17, "progress": QUIET, **options})


class TestPlannedOrder:
    sizes = st.lists(st.integers(1, 512), min_size=1, max_size=300)

    @settings(max_examples=60, deadline=None)
    @given(sizes, st.floats(0.01, 4.0), st.integers(1, 64), st.integers(0, 9))
    def test_a_part_of_an_epoch_visits_no_position_twice_more(self, lengths, epochs, batch_size, seed):
        order = classification.planned_order(lengths, epochs, batch_size, seed)
        assert len(order) == max(1, round(epochs * len(lengths)))
        visits = np.bincount(order, minlength=len(lengths))
        assert visits.max() - visits.min() <= 1

    def test_similar_lengths_share_a_batch(self):
        lengths = np.random.default_rng(0).lognormal(4, 0.8, 4_000).round() + 1
        planned = lengths[classification.planned_order(lengths.tolist(), 1, 16, 3)].reshape(-1, 16)
        shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 16)
        padding = [1 - rows.sum() / (rows.max(1) * 16).sum() for rows in (planned, shuffled)]
        assert padding[0] < 0.1
        assert padding[1] > 0.5


class TestRealModel:
    def test_every_tensor_is_trained(self, prepared, fitted):
        """The pooler too: BERT's sequence classifier reads the first token through it."""
        before = load_file(prepared.base_model / "model.safetensors")
        after = fitted.model.bert.state_dict()
        names = {name.removeprefix("bert."): name for name in before}
        assert set(after) <= set(names)
        assert [name for name in after if torch.equal(after[name], before[names[name]])] == []
        assert all(parameter.requires_grad for parameter in fitted.model.parameters())

    def test_loss_falls_and_beats_the_commonest_label(self, prepared, fitted):
        checks = {check.name: check for check in checkpoint_key.checks(fitted.history, fitted.scores)}
        assert checks["loss_is_falling"].passed
        assert (
            checks["loss_is_falling"].metadata["last_loss"]
            < 0.9 * checks["loss_is_falling"].metadata["first_loss"]
        )
        validation = prepared.split("validation")
        assert fitted.history[-1]["validation_accuracy"] > (
            np.bincount(validation.labels).max() / len(validation)
        )

    def test_tokens_are_counted_without_padding(self, prepared, fitted):
        assert fitted.num_tokens == sum(
            map(len, [chunk for document in prepared.split("train").chunks for chunk in document])
        )


class TestBatches:
    def test_accumulated_micro_batches_train_as_one_batch_does(self, tiny, tmp_path):
        # AdamW hides a wrong scale of the gradients in the weights; the logged loss and gradient norm show
        # it.
        chosen = quick(max_grad_norm=0.05)
        dropless = without_dropout(tiny, tmp_path / "model")
        whole, parts = (
            fine_tune(
                replace(tiny.recipe, base_model=dropless),
                chosen.model_copy(update={"micro_batch_size": size}),
                17,
                tmp_path / str(size),
                QUIET,
                resumable=False,
            )
            for size in (8, 2)
        )
        for name, value in whole.model.state_dict().items():
            torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-3, atol=2e-5)
        logged = [[line for line in fit.history if "loss" in line] for fit in (whole, parts)]
        for one, other in zip(*logged, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)

    def test_the_largest_pass_that_is_counted_to_fit_is_taken_again_on_a_resume(
        self, tiny, tmp_path, monkeypatch
    ):
        chosen = quick(micro_batch_size="auto", checkpoint_every_steps=2)
        assert train(tiny, tmp_path / "cpu", chosen).micro_batch_size == 8

        def count(outline: object, chosen: TrainingSettings, *device: object) -> StepMemory:
            peak = chosen.rows_a_pass() * GIB // (8 if chosen.gradient_checkpointing else 1)
            return StepMemory(**dict.fromkeys(StepMemory.model_fields, 0) | {"peak": peak})

        monkeypatch.setattr(measuring.Outline, "memory", count)
        monkeypatch.setattr(measuring, "of_accelerator", lambda name: name == "mem_get_info" or None)
        monkeypatch.setattr(measuring, "_free_memory_bytes", lambda: 3 * GIB)
        straight = train(tiny, tmp_path / "straight", chosen)
        with pytest.raises(Interrupted):
            train(tiny, tmp_path / "resumed", chosen, progress=Stopping(3))
        monkeypatch.setattr(measuring, "_free_memory_bytes", lambda: 30 * GIB)
        resumed = train(tiny, tmp_path / "resumed", chosen)
        assert straight.micro_batch_size == resumed.micro_batch_size == 2
        for name, value in straight.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value)
        little = measuring.with_fitting_passes(tiny.recipe, chosen, 17, 1, max_memory_gib=0.6)
        assert (little.micro_batch_size, little.gradient_checkpointing) == (2, True)

    def test_batch_that_cannot_be_divided_is_refused(self, tiny, tmp_path):
        with pytest.raises(SettingsError, match=r"training\.batch_size: 8 .* multiple of .* \(3\)"):
            train(tiny, tmp_path, quick(micro_batch_size=3))
        with pytest.raises(SettingsError, match=r"processes \(16\)"):
            accumulation_steps(quick(), 2)

    def test_balanced_loss_weighs_labels_inversely_to_their_chunks(self, tiny):
        split = tiny.split("train").select(range(6))
        split = replace(
            split,
            labels=np.array([0, 1, 1, 2, 2, 2]),
            chunks=[[[101, 102]] * count for count in (4, 1, 1, 1, 1, 4)],
        )
        loss = classification._loss_of_output(split, 3)
        weights = 12 / (3 * torch.tensor([4.0, 2.0, 6.0]))
        targets = torch.tensor([0, 1, 2, 2])
        logits = torch.randn(4, 3)
        expected = (
            torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights[targets]
        ).sum()
        torch.testing.assert_close(loss(type("Outputs", (), {"logits": logits}), targets), expected)


class TestDivergence:
    def test_poisoned_weights_are_one_line(self, tiny, tmp_path):
        _poison(tiny, tmp_path / "model")
        with pytest.raises(DivergenceError) as error:
            fine_tune(replace(tiny.recipe, base_model=tmp_path / "model"), quick(), 17, tmp_path / "w", QUIET)
        assert str(error.value) == (
            "training stopped at step 1 by its guard non_finite: loss nan, gradient norm nan; "
            "lower training.learning_rate or use precision fp32"
        )

    def test_scores_of_outputs_that_are_not_finite_are_not_numbers(self, tiny, tmp_path):
        scores = classification.score(
            load_for_training(_poison(tiny, tmp_path / "model"), tiny.labels), tiny.split("validation")
        )
        assert all(map(math.isnan, scores.values()))


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda folder: (folder / checkpoints.SEAL).unlink(), id="no seal"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"wei"), id="cut short"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), id="file missing"),
    ],
)
def test_torn_checkpoint_is_skipped(tmp_path, harm):
    for step in (9, 10):  # sorted as text, 9 would be the newest
        aside = tmp_path / "aside"
        aside.mkdir()
        (aside / "model.safetensors").write_bytes(b"weights")
        checkpoints.publish(aside, tmp_path / f"checkpoint-{step}", num_incidents=0, is_planned=True)
    assert checkpoints.latest_checkpoint(tmp_path).name == "checkpoint-10"
    harm(tmp_path / "checkpoint-10")
    assert checkpoints.latest_checkpoint(tmp_path).name == "checkpoint-9"


class TestStepLog:
    def test_lines_after_the_checkpoint_are_dropped_and_their_time_is_kept(self, tmp_path):
        log = checkpoints.StepLog(tmp_path / "metrics.jsonl", 0)
        for step in range(1, 6):
            log.append({"step": step, "seconds": step * 1.5})
        with log.path.open("a") as file:
            file.write('{"step": 6, "sec')  # torn by a kill
        resumed = checkpoints.StepLog(tmp_path / "metrics.jsonl", 3)
        assert resumed.seconds_before == 7.5
        resumed.append({"step": 4, "seconds": 8.0})
        assert [line["step"] for line in resumed.read()] == [1, 2, 3, 4]

    def test_only_the_first_rank_writes(self, tmp_path):
        log = checkpoints.StepLog(tmp_path / "metrics.jsonl", 0)
        log.append({"step": 1})
        checkpoints.StepLog(tmp_path / "metrics.jsonl", 0, is_writer=False).append({"step": 2})
        assert log.read() == [{"step": 1}]


def _poison(case: Prepared, folder: Path) -> Path:
    folder.mkdir()
    for path in case.base_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
