"""What is trained, and how fast: freezing, rates by depth, the pull to the pretrained weights."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from fullft_assets.errors import SettingsError
from fullft_assets.jobs.progress import Progress
from fullft_assets.models import layers
from fullft_assets.models.inference import load_for_training
from fullft_assets.settings import TrainingSettings
from fullft_assets.training.finetuning import Fit, fine_tune
from tests.prepared import Prepared, prepare

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    prepared = prepare(tmp_path_factory.mktemp("layers"), tiny=True)
    gc.freeze()  # the loop collects garbage for each segment, and would walk over all that the imports made
    return prepared


def chosen(**changes: object) -> TrainingSettings:
    values = {
        "epochs": 1.0,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-2,
        "precision": "fp32",
    }
    return TrainingSettings.model_validate(values | changes)


def train(case: Prepared, folder: Path, **changes: object) -> Fit:
    return fine_tune(case.recipe, chosen(**changes), 17, folder, Progress(silent=True), resumable=False)


def unchanged(case: Prepared, fit: Fit) -> set[str]:
    """Names of the pretrained parameters that are bit for bit as they were."""
    before = dict(load_for_training(case.base_model, case.labels, None).bert.named_parameters())
    return {name for name, value in fit.model.bert.named_parameters() if torch.equal(value, before[name])}


def distance(case: Prepared, fit: Fit) -> float:
    before = dict(load_for_training(case.base_model, case.labels, None).bert.named_parameters())
    return sum(
        float((value - before[name]).detach().square().sum())
        for name, value in fit.model.bert.named_parameters()
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            (
                "bert.embeddings.word_embeddings.weight",
                "bert.encoder.layer.1.output.dense.weight",
                "bert.pooler.dense.weight",
            ),
            (0, 2, 3),
        ),
        (
            ("transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "transformer.ln_f.weight"),
            (0, 2, 3),
        ),
        (
            (
                "model.embed_tokens.weight",
                "model.layers.1.mlp.up_proj.weight",
                "model.norm.weight",
                "score.weight",
            ),
            (0, 2, 3, 3),
        ),
        (("gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.dense.weight", "embed_out.weight"), (0, 1, 2)),
    ],
)
def test_depth_is_read_from_the_names_of_each_family(names, expected):
    found = layers.num_layers(names)
    assert tuple(layers.depth(name, found) for name in names) == expected


class TestFreezing:
    def test_frozen_embeddings_do_not_move_and_all_else_does(self, tiny, tmp_path):
        fit = train(tiny, tmp_path, freeze="embeddings", weight_decay=0.1)
        frozen = {name for name, _ in fit.model.bert.named_parameters() if name.startswith("embeddings.")}
        assert len(frozen) == 5
        assert unchanged(tiny, fit) == frozen
        assert fit.model.num_parameters(only_trainable=True) < fit.model.num_parameters()

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_frozen_layers_do_not_move_and_take_the_embeddings_with_them(self, tiny, tmp_path, checkpointing):
        fit = train(tiny, tmp_path, freeze_layers=1, weight_decay=0.1, gradient_checkpointing=checkpointing)
        assert unchanged(tiny, fit) == {
            name
            for name, _ in fit.model.bert.named_parameters()
            if name.startswith(("embeddings.", "encoder.layer.0."))
        }

    def test_every_weight_is_trained_by_default(self, tiny, tmp_path):
        assert unchanged(tiny, train(tiny, tmp_path)) == set()

    def test_more_layers_than_there_are_is_refused(self, tiny, tmp_path):
        with pytest.raises(
            SettingsError, match=r"training\.freeze_layers: 3 is more than the 2 layers of the base model"
        ):
            train(tiny, tmp_path, freeze_layers=3)


class TestRates:
    def test_each_layer_below_the_head_learns_more_slowly(self, tiny):
        model = load_for_training(tiny.base_model, tiny.labels, None)
        found = layers.groups(
            model,
            [name for name, _ in model.named_parameters() if "bias" not in name],
            chosen(layer_decay=0.5),
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        rates = {names[id(parameter)]: group["lr"] for group in found for parameter in group["params"]}
        assert set(rates) == set(names.values())
        assert rates["classifier.weight"] == rates["bert.pooler.dense.weight"] == 1e-2
        assert rates["bert.encoder.layer.1.output.dense.weight"] == 5e-3
        assert rates["bert.encoder.layer.0.output.dense.weight"] == 2.5e-3
        assert rates["bert.embeddings.word_embeddings.weight"] == 1.25e-3
        decays = {
            names[id(parameter)]: group["weight_decay"] for group in found for parameter in group["params"]
        }
        assert (decays["classifier.weight"], decays["classifier.bias"]) == (0.01, 0.0)

    def test_the_first_step_moves_each_layer_by_its_rate(self, tiny, tmp_path):
        # AdamW's first step moves a weight by its rate, whatever the gradient.
        fit = train(
            tiny,
            tmp_path,
            epochs=0.02,
            layer_decay=0.1,
            weight_decay=0.0,
            warmup_share=0.0,
            scheduler="constant_with_warmup",
        )
        assert fit.num_steps == 1
        before = load_for_training(tiny.base_model, tiny.labels, None).bert.state_dict()
        moved = {
            name: float((value.detach() - before[name]).abs().median())
            for name, value in fit.model.bert.named_parameters()
        }
        assert moved["encoder.layer.1.output.dense.weight"] == pytest.approx(1e-3, rel=0.01)
        assert moved["encoder.layer.0.output.dense.weight"] == pytest.approx(1e-4, rel=0.01)

    def test_the_log_shows_the_rate_of_the_head(self, tiny, tmp_path):
        fit = train(tiny, tmp_path, layer_decay=0.1, warmup_share=0.0, scheduler="constant_with_warmup")
        assert {line["learning_rate"] for line in fit.history if "loss" in line} == {1e-2}


class TestPull:
    def test_weights_stay_nearer_to_the_pretrained_ones_the_stronger_it_is(self, tiny, tmp_path):
        far, nearer, near = (
            distance(tiny, train(tiny, tmp_path / str(pull), l2_sp=pull)) for pull in (0.0, 0.1, 10.0)
        )
        assert near < 0.5 * nearer < 0.8 * far

    def test_it_is_the_distance_to_the_start_and_leaves_the_head_alone(self, tiny):
        model = load_for_training(tiny.base_model, tiny.labels, None)
        anchor = layers.Anchor(model, 0.25, has_new_head=True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
            parameter.data += 2.0
        anchor.pull(model)
        torch.testing.assert_close(
            model.bert.pooler.dense.weight.grad, torch.full_like(model.bert.pooler.dense.weight, 1.5)
        )
        torch.testing.assert_close(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))

    def test_frozen_weights_are_not_held_twice(self, tiny):
        model = load_for_training(tiny.base_model, tiny.labels, None)
        layers.freeze(model, chosen(freeze="embeddings"))
        assert not [
            name for name in layers.Anchor(model, 0.1, has_new_head=True)._start if "embeddings" in name
        ]
