"""What training reads must be what the YAML names today: else it is refused in one line before anything is
spent.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, BertForTokenClassification

from fullft_assets.errors import DataError, OutOfMemory, SettingsError
from fullft_assets.launch.workloads.planning import work
from fullft_assets.progress import Progress
from fullft_assets.settings import GeneralSettings, ReplaySettings, TrainingSettings
from fullft_assets.tasks.classification.recipe import ClassificationRecipe, MultiLabelRecipe
from fullft_assets.tasks.context import open_recipe
from fullft_assets.tasks.token_classification.recipe import TokenClassificationRecipe
from fullft_assets.training import regularization
from fullft_assets.training.finetuning import fine_tune
from tests.prepared import Prepared, prepare_language_model


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_language_model(tmp_path_factory.mktemp("language"))


@pytest.mark.parametrize("name", ["tiny", "language"])
class TestOpening:
    def test_another_tokenizer_than_the_snapshots_is_refused(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        prepared: Prepared = request.getfixturevalue(name)
        job = prepared.job("finetuned_checkpoint", chunks={"added_tokens": ["sublicense"]})
        with pytest.raises(DataError, match="another tokenizer .* chunks.added_tokens"):
            open_recipe(job, prepared.store, prepared.snapshot)

    def test_general_text_that_the_snapshot_lacks_is_refused(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        prepared: Prepared = request.getfixturevalue(name)
        for section, chosen in (
            ("general", GeneralSettings(path="general")),
            ("replay", ReplaySettings(path="general")),
        ):
            job = prepared.job("finetuned_checkpoint", snapshot={section: chosen})
            with pytest.raises(DataError, match=rf"taken without snapshot\.{section}, "):
                open_recipe(job, prepared.store, prepared.snapshot)


def no_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_that_runs_out_while_the_model_is_loaded_is_one_line(
    tiny: Prepared, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(regularization, "anchors", no_memory)
    chosen = tiny.use_case.settings.training.model_copy(update={"l2_sp": 0.1})
    with pytest.raises(
        OutOfMemory,
        match=r"before the first step: .* remove training\.l2_sp, ",
    ):
        fine_tune(tiny.recipe, chosen, 17, tmp_path, Progress(silent=True))


def test_memory_that_runs_out_in_the_plan_is_one_line(tiny: Prepared, monkeypatch) -> None:
    monkeypatch.setattr(regularization, "anchors", no_memory)
    with pytest.raises(
        OutOfMemory,
        match=r"^not one .*; lower training\.micro_batch_size",
    ):
        work(tiny.job("pilot_run"), tiny.store, Progress(silent=True))


class TestHeadOfTheBaseModel:
    """Fine-tuned models are base models, too; what their head's outputs meant is not what this case's labels
    are.
    """

    @staticmethod
    def loaded(kind: type, folder: Path, **chosen: object) -> torch.nn.Module:
        recipe = kind(base_model=folder, train=None, validation=None, labels=["a", "b", "c"], **chosen)
        torch.manual_seed(3)
        return recipe.load(TrainingSettings())

    @pytest.mark.parametrize(
        ("kind", "head", "num_outputs"),
        [
            (ClassificationRecipe, BertForSequenceClassification, 3),
            (MultiLabelRecipe, BertForSequenceClassification, 3),
            (partial(TokenClassificationRecipe, tokenization=None), BertForTokenClassification, 7),
        ],
    )
    @pytest.mark.parametrize("old", ["as many", 5])
    def test_it_is_drawn_anew(
        self, tiny: Prepared, tmp_path: Path, kind: type, head: type, num_outputs: int, old: str | int
    ) -> None:
        before = head.from_pretrained(
            str(tiny.base_model), num_labels=num_outputs if old == "as many" else old
        )
        torch.nn.init.constant_(before.classifier.weight, 7.0)
        torch.nn.init.constant_(before.classifier.bias, 7.0)
        before.save_pretrained(tmp_path)
        found = self.loaded(kind, tmp_path)
        assert found.classifier.weight.shape[0] == num_outputs
        assert 0.01 < found.classifier.weight.std() < 0.04, "as transformers draws it"
        assert found.classifier.bias.eq(0).all()
        for name, weight in before.bert.encoder.state_dict().items():
            assert torch.equal(weight, found.bert.encoder.state_dict()[name]), name
        if old == "as many":
            assert self.loaded(kind, tiny.base_model, start=tmp_path).classifier.weight.eq(7).all(), (
                "the champion's head goes on"
            )

    def test_weights_that_do_not_go_with_their_configuration_are_refused(
        self, tiny: Prepared, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny.base_model, tmp_path / "model")
        config = json.loads((tmp_path / "model/config.json").read_text()) | {"intermediate_size": 24}
        (tmp_path / "model/config.json").write_text(json.dumps(config))
        with pytest.raises(SettingsError, match=r"^base_model: .*bert\.encoder\.layer\.0\.\S+ .* the shape"):
            self.loaded(ClassificationRecipe, tmp_path / "model")
