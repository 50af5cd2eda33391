"""Models that bring code of their own: it runs where `trust_remote_code` says so, and nowhere else; it is
part of what they are.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fullft_assets.base_model import ModelFolder, TrustedFolder, read_header
from fullft_assets.checking.problems import validate
from fullft_assets.errors import SettingsError
from fullft_assets.models import loading
from fullft_assets.models.inference import (
    embed,
    load_base,
    load_causal,
    load_classifier,
    load_new_classifier,
    load_tagger,
)
from fullft_assets.store import Manifest
from fullft_assets.tasks.classification.scoring import model_labels
from fullft_assets.tasks.context import open_recipe
from tests import own_code
from tests.prepared import Prepared, command, prepare, write_tiny_model

TRAINING = {"epochs": 1, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 1e-3, "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_code.write(tmp_path_factory.mktemp("models") / "gated")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "gated")


@pytest.fixture(scope="module")
def case(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    sections = {"base_model": str(model), "trust_remote_code": True, "training": TRAINING}
    return prepare(
        tmp_path_factory.mktemp("project"), monitoring={"path": "data/letters/production"}, **sections
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where a process could leave copies of code."""
    return {name: tmp_path_factory.mktemp(name.lower()) for name in ("HOME", "HF_HOME", "TMPDIR")}


@pytest.fixture(scope="module")
def checkpoint(case: Prepared, places: dict[str, Path]) -> Manifest:
    """Trained by a process of its own, as a launcher or a person starts it."""
    job = case.job("finetuned_checkpoint")
    subprocess.run(
        command("training", job.write(case.store)),
        env={**os.environ, **{name: str(folder) for name, folder in places.items()}},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return case.store.find(job.case, job.stage, job.key)


@pytest.mark.parametrize(
    "read",
    [load_classifier, load_tagger, load_causal, load_new_classifier, model_labels],
)
def test_code_does_not_run_without_the_key(copy: Path, read: Callable[[ModelFolder], Any]) -> None:
    ran = copy / "ran"
    for file in copy.glob("*.py"):
        file.write_text(f"open({str(ran)!r}, 'w')\n{file.read_text()}")
    with pytest.raises(SettingsError, match="without trust_remote_code: true") as error:
        read(copy)
    assert "\n" not in str(error.value) and not ran.exists()
    assert loading.read_config(TrustedFolder(copy)).model_type == "gated" and ran.exists()


def test_checkpoint_is_trained_by_the_code_and_carries_it(case: Prepared, checkpoint: Manifest) -> None:
    folder = case.store.folder(checkpoint) / "model"
    before, after = (load_file(path / "model.safetensors") for path in (case.base_model, folder))
    assert not (after["bert.gate.weight"] == before["gate.weight"]).any()
    assert {file.name: file.read_text() for file in folder.glob("*.py")} == own_code.FILES
    assert {f"model/{name}" for name in own_code.FILES} <= set(checkpoint.files)
    assert type(load_classifier(TrustedFolder(folder))).__name__ == "GatedForSequenceClassification"


def test_no_copy_of_the_code_is_left(checkpoint: Manifest, places: dict[str, Path]) -> None:
    assert [path for folder in places.values() for path in folder.rglob("*.py")] == []
    assert list(places["TMPDIR"].glob("fullft-*")) == []


def test_training_continues_from_such_a_checkpoint(case: Prepared, checkpoint: Manifest) -> None:
    recipe = open_recipe(case.job("finetuned_checkpoint"), case.store, case.snapshot, checkpoint)
    weights = load_file(case.store.folder(checkpoint) / "model" / "model.safetensors")
    assert (
        recipe.load(case.use_case.settings.training).bert.gate.weight == weights["bert.gate.weight"]
    ).all()


class TestRevision:
    def test_it_covers_code_that_may_run(self, copy: Path) -> None:
        first = read_header(TrustedFolder(copy)).revision
        gates = copy / "gates.py"
        gates.write_text(f"{gates.read_text()}# harmless\n")
        assert len({first, read_header(TrustedFolder(copy)).revision, read_header(copy).revision}) == 3


class TestRefusals:
    def problems(self, case: Prepared, folder: Path) -> list[str]:
        settings = case.use_case.settings.model_copy(update={"base_model": str(folder)})
        return [
            f"{'.'.join(map(str, key))}: {message}"
            for key, message in validate(settings, case.use_case.project_root)
        ]

    def test_models_without_code_go_with_those_that_have_it(
        self, case: Prepared, copy: Path, tmp_path: Path
    ) -> None:
        """Of base model and champion one may have code, and the other none."""
        write_tiny_model(plain := tmp_path / "plain")
        assert self.problems(case, plain) == []
        assert (
            load_classifier(TrustedFolder(plain)).config.model_type
            == load_classifier(plain).config.model_type
        )
        for file in copy.glob("*.py"):
            file.unlink()
        (problem,) = self.problems(case, copy)
        assert problem.endswith("Python files too (*.py)")

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            (
                "acme/other--modeling_gated.GatedModel",
                r"AutoModel is code of another repository \(acme/other--.*without `acme/other--`",
            ),
            (
                "modeling_other.GatedModel",
                r"AutoModel: modeling_other.py is not in the folder; fetch the model's Python files too",
            ),
            (
                "../modeling_gated.GatedModel",
                r"AutoModel: \.\./modeling_gated.GatedModel is no class in a Python file of the folder",
            ),
        ],
    )
    def test_code_that_is_not_in_the_folder(
        self, case: Prepared, copy: Path, reference: str, message: str
    ) -> None:
        own_code.configure(copy, auto_map={**own_code.AUTO_MAP, "AutoModel": reference})
        (problem,) = self.problems(case, copy)
        with pytest.raises(SettingsError, match=message) as error:
            embed(load_base(TrustedFolder(copy)), [[[101, 102]]])
        assert problem == f"trust_remote_code: {error.value}"

    def test_a_package_that_is_not_installed(self, copy: Path) -> None:
        (copy / "gates.py").write_text(f"import nowhere_to_be_found\n{own_code.GATES}")
        with pytest.raises(SettingsError, match="cannot be imported: .*nowhere_to_be_found") as error:
            load_classifier(TrustedFolder(copy))
        assert "\n" not in str(error.value)
