"""A guard of another package: registered by an entry point, switched on by a YAML, acted on in a run and
after a resume.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import DivergenceError, Interrupted, SettingsError
from fullft_assets.jobs.progress import Progress
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.guards import GUARDS
from fullft_assets.training.finetuning import fine_tune
from tests import project as projects
from tests.optimizer_steps import Stopping
from tests.other_package import install
from tests.prepared import Prepared, prepare, quick

MODULE = '''
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
        since = None if metrics.loss is None else self.streak.add(metrics.step, metrics.loss < self.settings.below)
        return None if since is None else Symptom(since, f"loss {metrics.loss:.3g}")
'''


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = {"fullft_assets.guards": {"low_loss": "their_guards:LowLoss"}}
    install(tmp_path, "their-guards", {"their_guards.py": MODULE}, points)
    monkeypatch.syspath_prepend(str(tmp_path))
    look_again()
    yield
    look_again()


def look_again() -> None:
    """Let the registry look for installed packages again."""
    vars(GUARDS).pop("_theirs", None)
    GUARDS._loaded.pop("low_loss", None)


def problems(tmp_path: Path, guards: dict[str, object]) -> str:
    """Return what the check of a use case with these guards reports; an empty string if it passes."""
    project = projects.create(tmp_path / "project", rows=20)
    source = yaml.safe_load(project.yaml_path.read_text())
    source["attributes"].setdefault("training", {})["guards"] = guards
    project.yaml_path.write_text(yaml.safe_dump(source))
    try:
        load_use_case(project.yaml_path)
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"low_los": {"below": 0.5}},
            r"training\.guards\.low_los: unknown guard low_los: use one of .*did you mean low_loss\?",
        ),
        (
            {"low_loss": {"below": -1}},
            r"training\.guards\.low_loss: below: Input should be greater than 0",
        ),
        ({"low_loss": {"belw": 1}}, r"training\.guards\.low_loss: below: Field required"),
        (
            {"low_loss": {"below": 1, "action": "sing"}},
            r"training\.guards\.low_loss: action: Input should be 'off', 'warn'",
        ),
        ({"loss_spike": {"steps": 3}}, r"training\.guards\.loss_spike: its thresholds were removed"),
        ({"idle": "off"}, r"training\.guards\.idle: `idle` was removed; rows are read from memory"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    tmp_path: Path, other_package: None, more: dict[str, object], message: str
) -> None:
    assert re.search(message, problems(tmp_path, more))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("other_guards"), tiny=True)


def settings(**guard: object) -> TrainingSettings:
    return quick(epochs=0.3, track=[], checkpoint_every_steps=2, guards={"low_loss": guard})


def test_it_stops_a_run_also_after_a_resume(tiny: Prepared, tmp_path: Path, other_package: None) -> None:
    stopping = settings(action="stop", below=1e3, steps=4)
    message = "training stopped at step 4 by its guard low_loss: loss .*; look for the label in the text"
    with pytest.raises(DivergenceError, match=message):
        fine_tune(tiny.recipe, stopping, 17, tmp_path / "straight", Progress(silent=True))
    with pytest.raises(Interrupted):
        fine_tune(tiny.recipe, stopping, 17, tmp_path / "resumed", Stopping(3))
    with pytest.raises(DivergenceError, match=message):
        fine_tune(tiny.recipe, stopping, 17, tmp_path / "resumed", Progress(silent=True))
