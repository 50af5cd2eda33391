"""training: the settings in a checkpoint's key, and the checks of a finished run."""

from typing import Any

import numpy as np
import pytest

from fullft_assets import checkpoint as checkpoint_key
from fullft_assets.settings import TrainingSettings, UseCaseSettings

pytestmark = pytest.mark.quick

LEAST: dict[str, Any] = {
    "base_model": "models/a",
    "documents": {"path": "data"},
    "examples": {"label": "kind"},
}


def key(**changes: Any) -> dict[str, Any]:
    return checkpoint_key.key_settings(UseCaseSettings.model_validate({**LEAST, "training": changes}))


class TestKey:
    @pytest.mark.parametrize(
        "change",
        [{"track": ["mlflow"]}, {"track": []}, {"checkpoint_every_steps": 7}],
    )
    def test_what_changes_no_weight_is_not_in_it(self, change):
        assert key(**change) == key()

    def test_nor_is_the_number_of_processes_so_that_another_one_resumes(self):
        of_two = UseCaseSettings.model_validate({**LEAST, "launcher": {"processes": 2}})
        assert checkpoint_key.key_settings(of_two) == key()

    @pytest.mark.parametrize(
        "change",
        [
            {"keep_best": True},
            {"freeze_layers": 1},
            {"l2_sp": 0.01},
            {"ewc": 1.0},
            {"wise_ft": [0.5, 1.0]},
            {"distillation": {"weight": 0.3}},
            {"retrain_from": "champion"},
            {"max_general_rise": 0.1},
            {"guards": {"loss_spike": "stop"}},
            {"optimizer": "adafactor"},
            {"weights": "bf16"},
            {"sharding": "fsdp2"},
            {"liger": "off"},
            {"compile": True},
            {"learning_rate": 1e-5},
            {"betas": (0.9, 0.95)},
            {"retry_epoch": 1},
        ],
    )
    def test_what_changes_weights_is(self, change):
        assert key(**change) != key()
        assert key(**change)["training"].keys() >= change.keys()

    def test_every_setting_is_either_in_the_key_or_named_as_one_that_changes_no_weight(self):
        assert set(TrainingSettings.model_fields) - set(key()["training"]) == {
            "track",
            "checkpoint_every_steps",
            "betas",  # unless they are set
        }


class TestChecks:
    def of(self, losses: list[float], validation: dict[int, float], model_loss: float) -> dict[str, bool]:
        history: list[dict[str, Any]] = [{"step": n, "loss": loss} for n, loss in enumerate(losses, start=1)]
        history += [{"step": n, "validation_loss": loss} for n, loss in validation.items()]
        history.append({"step": 2, "event": "idle", "action": "warn", "reason": "slow"})
        return {
            check.name: check.passed
            for check in checkpoint_key.checks(history, {"validation_loss": model_loss})
        }

    def test_a_loss_that_does_not_fall_is_red(self):
        assert not self.of([1.0, 1.0, 1.0], {3: 1.0}, 1.0)["loss_is_falling"]
        assert not self.of([1.0, 1.0, float("nan")], {3: 1.0}, 1.0)["loss_is_falling"]
        assert not self.of([1.0] * 8 + [float("nan")], {3: 1.0}, 1.0)["loss_is_falling"]

    def test_noise_of_the_training_loss_refuses_no_model_that_learns(self):
        random = np.random.default_rng(0)

        def refused(fall: float, validation: dict[int, float]) -> float:
            """The share of 21 steps' logs, falling by so much with a noise of 0.4, which are red as
            errors.
            """
            count = 0
            for _ in range(400):
                losses = 3 - fall * np.linspace(0, 1, 21) + random.normal(0, 0.4, 21)
                history = [{"step": n, "loss": float(loss)} for n, loss in enumerate(losses, start=1)]
                history += [{"step": n, "validation_loss": loss} for n, loss in validation.items()]
                check, _ = checkpoint_key.checks(history, {"validation_loss": 2.75})
                count += not check.passed and check.severity == "error"
            return count / 400

        assert refused(0.15, {10: 2.8}) <= 0.05
        assert refused(0.15, {}) <= 0.05, "with one validation loss the check is yellow"
        assert refused(-1.2, {10: 2.7}) >= 0.95
        unclear = [
            {"step": n, "loss": loss} for n, loss in enumerate([1.0, 1.2, 1.1, 0.9, 1.3, 1.1], start=1)
        ]
        for ended in (5.0, float("nan")):
            check, _ = checkpoint_key.checks(
                [*unclear, {"step": 3, "validation_loss": 1.0}], {"validation_loss": ended}
            )
            assert (check.passed, check.severity) == (False, "error"), "on the same rows the loss rose"
        diverged = [
            {"step": n, "loss": loss} for n, loss in enumerate([1.6, 20.0, 40.0, 30.0, 35.0, 33.0], start=1)
        ]
        assert checkpoint_key.checks(diverged, {"validation_loss": 30.0})[0].severity == "error"

    def test_overfitting_is_judged_by_the_weights_that_became_the_model(self):
        validation = {1: 1.2, 2: 1.0, 3: 1.2}
        assert not self.of([2.0, 1.5, 1.0], validation, 1.2)["is_not_overfitted"]
        assert self.of([2.0, 1.5, 1.0], validation, 1.0)["is_not_overfitted"]

    def test_weights_between_two_models_are_judged_by_their_own_loss(self):
        validation = {1: 1.0, 2: 1.2, 3: 1.4}
        assert self.of([2.0, 1.5, 1.0], validation, 0.9)["is_not_overfitted"]
        # They count as the best, too; a model that is worse than a step's is reported.
        assert not self.of([2.0, 1.5, 1.0], validation, 1.11)["is_not_overfitted"]
