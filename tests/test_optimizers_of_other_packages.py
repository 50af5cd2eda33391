"""An optimizer of another package: an entry point registers it, a YAML names it, a training uses it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fullft_assets.checking.validation import load_use_case
from fullft_assets.errors import Interrupted, SettingsError
from fullft_assets.jobs.progress import Progress
from fullft_assets.planning import state_bytes
from fullft_assets.settings import TrainingSettings
from fullft_assets.settings.optimizers import OPTIMIZERS
from fullft_assets.training.finetuning import fine_tune
from fullft_assets.training.measuring import Outline
from tests import project as projects
from tests.optimizer_steps import Stopping
from tests.other_package import OPTIMIZER, install
from tests.prepared import Prepared, prepare


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = {"fullft_assets.optimizers": {"momentum": "their_optimizers:MOMENTUM"}}
    site = tmp_path / "site"
    install(site, "their-optimizers", {"their_optimizers.py": OPTIMIZER}, points)
    monkeypatch.syspath_prepend(str(site))
    look_again()
    yield
    look_again()


def look_again() -> None:
    """Let the registry look for installed packages again."""
    vars(OPTIMIZERS).pop("_theirs", None)
    OPTIMIZERS._loaded.pop("momentum", None)
    sys.modules.pop("their_optimizers", None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("other_optimizers"), tiny=True)


def settings(**changes: object) -> TrainingSettings:
    values = {"epochs": 0.2, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 3e-3, "track": []}
    return TrainingSettings.model_validate(
        {**values, "precision": "fp32", "optimizer": "momentum", **changes}
    )


def test_a_yaml_names_it(tmp_path: Path, other_package: None) -> None:
    project = projects.create(tmp_path / "project", rows=20)
    source = yaml.safe_load(project.yaml_path.read_text())
    for weights, problem in (("fp32", None), ("bf16", "bf16 loses small updates with momentum")):
        source["attributes"]["training"] = {"optimizer": "momentum", "weights": weights}
        project.yaml_path.write_text(yaml.safe_dump(source))
        if problem is None:
            assert load_use_case(project.yaml_path).settings.training.optimizer == "momentum"
            continue
        with pytest.raises(SettingsError, match=problem):
            load_use_case(project.yaml_path)


def test_it_is_planned(tiny: Prepared, other_package: None) -> None:
    assert (state_bytes("momentum"), state_bytes("momentum", "bf16")) == (12, 6)
    outline = Outline(tiny.recipe, settings(), seed=1)
    step = outline.memory(settings(), "fp32", is_gpu=False)
    assert step.moments == step.gradients == 4 * outline.work().num_trained_parameters


def test_it_trains_and_resumes_to_the_same_losses(
    tiny: Prepared, tmp_path: Path, other_package: None
) -> None:
    straight = fine_tune(tiny.recipe, settings(), 17, tmp_path / "straight", Progress(silent=True))
    with pytest.raises(Interrupted):
        fine_tune(tiny.recipe, settings(), 17, tmp_path / "resumed", Stopping(2))
    resumed = fine_tune(tiny.recipe, settings(), 17, tmp_path / "resumed", Progress(silent=True))
    losses = [[line["loss"] for line in fit.history if "loss" in line] for fit in (straight, resumed)]
    assert losses[0] == losses[1] and min(losses[0]) < losses[0][0]
    assert resumed.resumed_from_step == 2
