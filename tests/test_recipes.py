"""Every recipe is a use case that loads, and says on top what it was measured on."""

import shutil
from pathlib import Path

import pytest
import yaml

from fullft_assets.base_model import resolve_base_model
from fullft_assets.checking.validation import load_use_case
from fullft_assets.training.finetuning import require
from tests import project as projects
from tests.test_base_model import MINILM, write_model

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_a_use_case_that_training_takes(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "my_project" / "defs" / recipe.stem / "defs.yaml"
    path.parent.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    shutil.copy(recipe, path)
    attributes = yaml.safe_load(recipe.read_text())["attributes"]
    if not attributes["base_model"].startswith("package:"):
        (tmp_path / attributes["base_model"]).parent.mkdir(parents=True)
        write_model(
            tmp_path / attributes["base_model"],
            resolve_base_model(MINILM, tmp_path),
            max_position_embeddings=8_192,
        )
    projects.write_rows(tmp_path / attributes["documents"]["path"] / "rows.jsonl", projects.licence_rows(20))
    settings = load_use_case(path).settings
    require(settings.training, settings.launcher.processes)
