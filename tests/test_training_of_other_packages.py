"""An optimizer and a guard of another package: entry points register them, a YAML names them, a training uses
them, also after a resume.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import DivergenceError, Interrupted, SettingsError
from fullft_assets.planning import state_bytes
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.guards import GUARDS
from fullft_assets.settings.optimizers import OPTIMIZERS
from fullft_assets.training.finetuning import fine_tune
from fullft_assets.training.measuring import Outline
from tests import project as projects
from tests.optimizer_steps import Stopping
from tests.other_package import OPTIMIZER, install
from tests.prepared import QUIET, Prepared, quick

GUARD = '''
from pydantic import Field
from fullft_assets.training.guards import Streak, Symptom
from fullft_assets.settings import GuardSettings


class LowLossSettings(GuardSettings):
    below: float = Field(gt=0)
    steps: int = Field(2, ge=1)


class LowLoss:
    """A loss that is too good to be true, for some steps in a row."""

    settings_class = LowLossSettings
    fix = "look for the label in the text"

    def __init__(self, settings, run):
        self.settings, self.streak = settings, Streak(settings.steps)

    def look(self, metrics):
        loss = metrics.loss
        since = None if loss is None else self.streak.add(metrics.step, loss < self.settings.below)
        return None if since is None else Symptom(since, f"loss {metrics.loss:.3g}")
'''


@pytest.fixture(autouse=True)
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = {
        "fullft_assets.optimizers": {"momentum": "their_rules:MOMENTUM"},
        "fullft_assets.guards": {"low_loss": "their_guards:LowLoss"},
    }
    site = tmp_path / "site"
    install(site, "their-rules", {"their_rules.py": OPTIMIZER, "their_guards.py": GUARD}, points)
    monkeypatch.syspath_prepend(str(site))
    look_again()
    yield
    look_again()


def look_again() -> None:
    """Let the registries look for installed packages again."""
    for registry, name in ((OPTIMIZERS, "momentum"), (GUARDS, "low_loss")):
        vars(registry).pop("_theirs", None)
        registry._loaded.pop(name, None)
    for module in ("their_rules", "their_guards"):
        sys.modules.pop(module, None)


def problems(tmp_path: Path, **training: object) -> str:
    """Return what the check of a use case reports; an empty string if it passes."""
    project = projects.create(tmp_path / "project", rows=20)
    source = yaml.safe_load(project.yaml_path.read_text())
    source["attributes"]["training"] = training
    project.yaml_path.write_text(yaml.safe_dump(source))
    try:
        load_use_case(project.yaml_path)
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": "momentum"}, "^$"),
        ({"optimizer": "momentum", "weights": "bf16"}, "bf16 loses small updates with momentum"),
        ({"guards": {"low_loss": {"action": "stop", "below": 0.5}}}, "^$"),
        (
            {"guards": {"low_los": {"below": 0.5}}},
            r"training\.guards\.low_los: unknown guard low_los: use one of .*did you mean `low_loss`\?",
        ),
        (
            {"guards": {"low_loss": {"below": -1}}},
            r"training\.guards\.low_loss: below: Input should be greater than 0",
        ),
        ({"guards": {"low_loss": {"belw": 1}}}, r"training\.guards\.low_loss: below: Field required"),
        (
            {"guards": {"loss_spike": {"steps": 3}}},
            r"training\.guards\.loss_spike: its thresholds were removed",
        ),
        (
            {"guards": {"idle": "off"}},
            r"training\.guards\.idle: `idle` was removed; rows are read from memory",
        ),
    ],
)
def test_a_yaml_names_them(tmp_path: Path, training: dict[str, object], message: str) -> None:
    assert re.search(message, problems(tmp_path, **training))


def settings(**changes: object) -> TrainingSettings:
    return quick(epochs=0.2, learning_rate=3e-3, track=[], optimizer="momentum", **changes)


def test_an_optimizer_is_planned(tiny: Prepared) -> None:
    assert (state_bytes("momentum"), state_bytes("momentum", "bf16")) == (12, 6)
    outline = Outline(tiny.recipe, settings(), seed=1)
    step = outline.memory(settings(), "fp32", is_gpu=False)
    assert step.moments == step.gradients == 4 * outline.work().num_trained_parameters


def test_an_optimizer_trains_and_resumes_to_the_same_losses(tiny: Prepared, tmp_path: Path) -> None:
    straight = fine_tune(tiny.recipe, settings(), 17, tmp_path / "straight", QUIET)
    with pytest.raises(Interrupted):
        fine_tune(tiny.recipe, settings(), 17, tmp_path / "resumed", Stopping(2))
    resumed = fine_tune(tiny.recipe, settings(), 17, tmp_path / "resumed", QUIET)
    losses = [[line["loss"] for line in fit.history if "loss" in line] for fit in (straight, resumed)]
    assert losses[0] == losses[1] and min(losses[0]) < losses[0][0]
    assert resumed.resumed_from_step == 2


def test_a_guard_stops_a_run_also_after_a_resume(tiny: Prepared, tmp_path: Path) -> None:
    stopping = settings(guards={"low_loss": {"action": "stop", "below": 1e3, "steps": 4}})
    message = "training stopped at step 4 by its guard low_loss: loss .*; look for the label in the text"
    with pytest.raises(DivergenceError, match=message):
        fine_tune(tiny.recipe, stopping, 17, tmp_path / "straight", QUIET)
    with pytest.raises(Interrupted):
        fine_tune(tiny.recipe, stopping, 17, tmp_path / "resumed", Stopping(3))
    with pytest.raises(DivergenceError, match=message):
        fine_tune(tiny.recipe, stopping, 17, tmp_path / "resumed", QUIET)
