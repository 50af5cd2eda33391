"""What is seen of a training run: the step log, an MLflow store, sparse progress with the time left."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from mlflow.store.tracking.file_store import FileStore
from mlflow.tracking._tracking_service import utils
from transformers import Gemma4TextConfig

from fullft_assets.errors import Interrupted, SettingsError
from fullft_assets.models.hardware import peak_flops
from fullft_assets.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import finetuning, recorder
from fullft_assets.training.checkpoints import STEP_LOG, RunHistory, StepLog
from fullft_assets.training.recorder import Meter, ModelShape, StepRecorder, Tracker, step_flops
from fullft_assets.training.watching import GuardActions, RolledBack
from tests.optimizer_steps import Stopping
from tests.prepared import Prepared, quick
from tests.test_isolation import APART, SMALL, build


def train(
    case: Prepared, folder: Path, progress: Progress | None = None, **changes: object
) -> finetuning.Fit:
    return finetuning.fine_tune(case.recipe, quick(**changes), 17, folder, progress or Progress(silent=True))


def stop_and_resume(case: Prepared, folder: Path, after: int, **changes: object) -> finetuning.Fit:
    with pytest.raises(Interrupted):
        train(case, folder, Stopping(after), **changes)
    return train(case, folder, **changes)


def _recorder(folder: Path) -> StepRecorder:
    """The recorder of a run of nine steps, without the run."""
    quiet = Progress(silent=True)
    return StepRecorder(
        StepLog(folder / STEP_LOG, 0),
        Tracker([], folder, {}, quiet),
        Meter(np.full(9, 8), np.full(9, 8.0), None),
        quiet,
    )


class TestStepLog:
    def test_each_step_has_its_numbers(self, tiny, tmp_path):
        fit = train(tiny, tmp_path, track=[])
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert lines == fit.history
        steps = [line for line in lines if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, fit.num_steps + 1))
        names = ("loss", "grad_norm", "tokens_per_second", "memory_gib", "seconds")
        for line in steps:
            assert all(line[name] > 0 for name in names), line
            assert line["learning_rate"] > 0 or line["step"] == 1, "the warm-up begins at 0"
            assert "mfu" not in line, "of a CPU no peak is known"
        assert [line["seconds"] for line in steps] == sorted(line["seconds"] for line in steps)
        assert {"validation_loss", "validation_accuracy", "validation_macro_f1"} <= set(lines[-1])

    def test_by_default_a_small_encoder_has_its_own_rate_and_checkpoints_come_by_time(
        self, tiny, tmp_path, monkeypatch
    ):
        timed: list[bool] = []
        begin = finetuning.Saver.begin
        monkeypatch.setattr(
            finetuning.Saver,
            "begin",
            lambda *args, **about: (timed.append(not about["is_planned"]), begin(*args, **about)),
        )
        fit = train(tiny, tmp_path / "a", track=[], learning_rate=None)
        assert max(line.get("learning_rate", 0.0) for line in fit.history) == pytest.approx(1e-4)
        assert fit.about["learning_rate"] == 1e-4
        assert not any(timed)
        monkeypatch.setattr(finetuning, "_SECONDS_TO_SAVE", 0.0)
        train(tiny, tmp_path / "b", track=[])
        assert sum(timed) > fit.num_steps / 2

    def test_where_the_cards_peak_is_known_each_step_has_its_share_of_it(self, tiny, tmp_path, monkeypatch):
        """That this machine has such a card is injected."""
        peak = 1e5
        monkeypatch.setattr(finetuning, "peak_flops", lambda device, precision: peak)
        fit = train(tiny, tmp_path, epochs=0.5, track=[])
        steps = [line for line in fit.history if "loss" in line]
        assert len(steps) == fit.num_steps > 1
        for line in steps:
            # 6 FLOP a trained weight and token, and those of attention.
            assert line["mfu"] * peak / line["tokens_per_second"] > 5.9 * ModelShape.of(fit.model).num_trained

    @pytest.mark.parametrize("is_fp16", [True, False])
    def test_an_infinite_norm_is_no_divergence_in_fp16_alone(self, tmp_path, is_fp16):
        """There the loss scaler tries a scale, and skips the step that overflows."""
        recorder = _recorder(tmp_path)
        guards = GuardActions(
            TrainingSettings(), recorder, RunHistory(tmp_path), num_steps=9, resumable=False
        )
        line = recorder.record_step(
            {"step": 3, "loss": 1.0, "grad_norm": math.inf, "learning_rate": 1e-3}, 9, is_fp16=is_fp16
        )
        if is_fp16:
            guards.check(line)
            assert [(line["step"], line["grad_norm"]) for line in recorder.log.lines] == [(3, None)]
        else:
            with pytest.raises(RolledBack):
                guards.check(line)


MANAGED = "arn:aws:sagemaker:eu-west-1:111122223333:mlflow-tracking-server/ours"


class TestMLflow:
    @pytest.fixture
    def client(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow

        return mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())

    def test_a_resumed_run_is_one_run_with_every_step(self, client, tiny, tmp_path):
        fit = stop_and_resume(
            tiny, tmp_path / "finetuned_checkpoint" / "k1", 7, track=["mlflow"], learning_rate=3e-3
        )
        [run] = client.search_runs(["0"])
        assert run.info.run_name == "finetuned_checkpoint/k1"
        assert run.info.status == "FINISHED"
        assert run.data.params["learning_rate"] == "0.003"
        history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
        assert history == {line["step"]: line["loss"] for line in fit.history if "loss" in line}
        assert client.get_metric_history(run.info.run_id, "validation_macro_f1")

    def test_a_server_that_fails_does_not_end_the_training(self, tiny, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://svc:PLANTED@127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert train(tiny, tmp_path, Progress(), track=["mlflow"], epochs=0.2).num_steps > 0
        printed = capsys.readouterr()
        assert "mlflow: tracking failed (" in printed.out
        assert "PLANTED" not in printed.out + printed.err

    @pytest.mark.parametrize(
        ("module", "package"), [("mlflow", "mlflow-skinny"), ("sagemaker_mlflow", "sagemaker-mlflow")]
    )
    def test_what_is_not_installed_is_refused_before_anything_is_loaded(
        self, tiny, tmp_path, monkeypatch, module, package
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", MANAGED)
        monkeypatch.setattr(recorder.importlib.util, "find_spec", lambda name: None if name == module else 1)
        with pytest.raises(
            SettingsError, match=rf"track: {module} is not installed; `pip install {package}`"
        ):
            train(tiny, tmp_path, track=["mlflow"])

    def test_the_arn_of_a_managed_server_is_handed_to_its_plugin(self, client, tiny, tmp_path, monkeypatch):
        """The plugin `sagemaker-mlflow` registers its store for the scheme `arn`."""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", MANAGED)
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: name == "sagemaker_mlflow" or find_spec(name)
        )
        stores = {MANAGED: FileStore(str(tmp_path / "mlruns"))}
        monkeypatch.setitem(
            utils._tracking_store_registry._registry, "arn", lambda store_uri, artifact_uri: stores[store_uri]
        )
        train(tiny, tmp_path, track=["mlflow"], epochs=0.2)
        [run] = client.search_runs(["0"])
        assert client.get_metric_history(run.info.run_id, "loss")


#: Two of four experts compute a token.
MIXTURES = {
    "mixtral": APART["mixtral"],
    "gemma4": Gemma4TextConfig(
        **SMALL,
        **{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8},
        **{"hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


class TestMeter:
    def test_rates_are_those_of_the_last_steps_without_the_time_between(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(recorder.time, "perf_counter", lambda: now[0])
        meter = Meter(np.full(50, 100), np.full(50, 1e9), peak=1e10)
        for step in range(1, 41):
            meter.start()  # validation and checkpoints are over
            now[0] += 2.0
            rates = meter.step_done(step)
            now[0] += 1_000.0
        assert rates["tokens_per_second"] == pytest.approx(50)
        assert rates["mfu"] == pytest.approx(0.05)

    @pytest.mark.parametrize("name", MIXTURES)
    def test_of_experts_those_count_that_compute_a_token(self, name):
        model = build(MIXTURES[name])
        layers = {name: weight.numel() for name, weight in model.base_model.named_parameters()}
        of_experts = sum(size for name, size in layers.items() if ".experts." in name)
        # The embeddings are looked up.
        assert (
            ModelShape.of(model).num_weights
            == sum(layers.values()) - of_experts // 2 - layers["embed_tokens.weight"]
        )

    def test_flops_of_a_step_are_six_for_each_weight_and_token_where_all_is_trained(self):
        lengths = np.array([10, 20, 30])
        none = np.zeros(3, int)
        assert step_flops(
            lengths, none, np.array([0, 2, 3]), ModelShape(1_000, 1_000, 0, 0, num_layers=0, hidden=0)
        ).tolist() == [6_000 * 30, 6_000 * 30]
        assert step_flops(
            lengths, none, np.array([0, 3]), ModelShape(1_000, 0, 0, 0, num_layers=2, hidden=8)
        ).tolist() == [2_000 * 60 + 192 * 1_400]

    def test_the_head_of_a_language_model_costs_where_a_token_is_predicted(self):
        assert step_flops(
            np.array([10, 20]),
            np.array([9, 4]),
            np.array([0, 1, 2]),
            ModelShape(0, 0, 500, 500, num_layers=0, hidden=0),
        ).tolist() == [3_000 * 9, 3_000 * 4]

    @pytest.mark.parametrize(
        ("card", "precision", "peak"),
        [
            ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
            ("NVIDIA H100 PCIe", "bf16", 756e12),
            ("NVIDIA L4", "fp16", 121e12),
            ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
            ("CPU", "fp32", None),
        ],
    )
    def test_the_peak_is_known_by_the_name_of_the_card(self, card, precision, peak):
        assert peak_flops(card, precision) == peak
