"""What training reads must be what the YAML names today: else it is refused in one line before anything is spent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fullft_assets.errors import DataError, OutOfMemory
from fullft_assets.settings import GeneralSettings, ReplaySettings
from fullft_assets.workloads import holding
from fullft_assets.workloads.encoder import Encoder
from fullft_assets.workloads.entry import Progress
from fullft_assets.workloads.finetuning import fine_tune
from fullft_assets.workloads.planning import work
from fullft_assets.workloads.tasks import open_recipe
from tests.prepared import Prepared, prepare, prepare_language_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("encoder"), tiny=True)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_language_model(tmp_path_factory.mktemp("language"))


def test_an_encoder_that_does_not_say_how_its_model_is_loaded_cannot_be_made() -> None:
    class Headless(Encoder):
        pass

    with pytest.raises(TypeError, match="abstract method '?_load"):
        Headless()


@pytest.mark.parametrize("name", ["encoder", "language"])
class TestOpening:
    def test_another_tokenizer_than_the_snapshots_is_refused(self, name: str, request: pytest.FixtureRequest) -> None:
        prepared: Prepared = request.getfixturevalue(name)
        job = prepared.job("finetuned_checkpoint", chunks={"added_tokens": ["sublicense"]})
        with pytest.raises(DataError, match="another tokenizer than base_model's with chunks.added_tokens"):
            open_recipe(job, prepared.store, prepared.snapshot)

    def test_general_text_that_the_snapshot_lacks_is_refused(self, name: str, request: pytest.FixtureRequest) -> None:
        prepared: Prepared = request.getfixturevalue(name)
        for section, chosen in (("general", GeneralSettings(path="general")), ("replay", ReplaySettings(path="general"))):
            job = prepared.job("finetuned_checkpoint", snapshot={section: chosen})
            with pytest.raises(DataError, match=rf"taken without snapshot\.{section}, .*; take the snapshot again"):
                open_recipe(job, prepared.store, prepared.snapshot)


def no_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_that_runs_out_while_the_model_is_loaded_is_one_line(encoder: Prepared, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(holding, "anchors", no_memory)
    chosen = encoder.use_case.settings.training.model_copy(update={"l2_sp": 0.1})
    with pytest.raises(OutOfMemory, match=r"^memory ran out before the first step: .* leave out training\.l2_sp, which holds a copy"):
        fine_tune(encoder.recipe, chosen, 17, tmp_path, Progress(silent=True))


def test_memory_that_runs_out_in_the_plan_is_one_line(encoder: Prepared, monkeypatch) -> None:
    monkeypatch.setattr(holding, "anchors", no_memory)
    with pytest.raises(OutOfMemory, match=r"^not one training pass of the largest size fits in memory; lower training\.micro_batch_size"):
        work(encoder.job("pilot_run"), encoder.store, Progress(silent=True))
