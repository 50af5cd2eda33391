"""What is trained, and how fast: freezing, rates by depth, the pull to the pretrained weights."""

from pathlib import Path

import pytest
import torch

from fullft_assets.errors import SettingsError
from fullft_assets.models import layers
from fullft_assets.models.inference import load_for_training
from fullft_assets.progress import Progress
from fullft_assets.training.finetuning import Fit, fine_tune
from fullft_assets.training.regularization import Anchor
from tests.prepared import Prepared, quick

pytestmark = pytest.mark.numeric


def train(case: Prepared, folder: Path, **changes: object) -> Fit:
    return fine_tune(
        case.recipe, quick(learning_rate=1e-2, **changes), 17, folder, Progress(silent=True), resumable=False
    )


def unchanged(case: Prepared, fit: Fit) -> set[str]:
    """Names of the pretrained parameters that are bit for bit as they were."""
    before = dict(load_for_training(case.base_model, case.labels).bert.named_parameters())
    return {name for name, value in fit.model.bert.named_parameters() if torch.equal(value, before[name])}


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
        (
            (
                "model.vision_tower.encoder.layers.7.mlp.fc1.weight",
                "model.language_model.layers.1.mlp.up_proj.weight",
            ),
            (3, 2),
        ),
        (("gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.dense.weight", "embed_out.weight"), (0, 1, 2)),
    ],
)
def test_depth_is_read_from_the_names_of_each_family(names, expected):
    assert tuple(layers.depth(name, layers.num_layers(names)) for name in names) == expected


class TestFreezing:
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_frozen_layers_do_not_move_and_take_the_embeddings_with_them(self, tiny, tmp_path, checkpointing):
        fit = train(tiny, tmp_path, freeze_layers=1, weight_decay=0.1, gradient_checkpointing=checkpointing)
        assert unchanged(tiny, fit) == {
            name
            for name, _ in fit.model.bert.named_parameters()
            if name.startswith(("embeddings.", "encoder.layer.0."))
        }

    def test_more_layers_than_there_are_is_refused(self, tiny, tmp_path):
        with pytest.raises(SettingsError, match=r"training\.freeze_layers: 3 is more than the 2 "):
            train(tiny, tmp_path, freeze_layers=3)


class TestPull:
    def test_it_is_the_distance_to_the_start_and_leaves_the_head_alone(self, tiny):
        model = load_for_training(tiny.base_model, tiny.labels)
        importance = {name: torch.full_like(value, 2.0) for name, value in model.named_parameters()}
        anchors = [
            Anchor(model, 0.25, has_new_head=True),
            Anchor(model, 0.25, has_new_head=True, importance=importance),
        ]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
            parameter.data = parameter.data + 2.0
        weight = model.bert.encoder.layer[1].output.dense.weight
        for anchor, expected in zip(anchors, (1.5, 2.5), strict=True):
            anchor.pull(model)
            torch.testing.assert_close(weight.grad, torch.full_like(weight, expected))
        torch.testing.assert_close(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
