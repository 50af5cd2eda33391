"""What makes a model forget less: distillation from the original, EWC, weights in
between. Each does what it says.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fullft_assets.errors import DivergenceError, SettingsError
from fullft_assets.models import precision
from fullft_assets.models.inference import load_causal
from fullft_assets.models.token_loss import IGNORED, TokenLoss
from fullft_assets.settings import DistillationSettings, TrainingSettings
from fullft_assets.store import Manifest
from fullft_assets.training import regularization
from fullft_assets.training.finetuning import Fit, fine_tune
from tests import project as projects, small_language_model
from tests.prepared import QUIET, Prepared, prepare, prepare_language_model, write_general
from tests.test_training_forgetting import encoder as encoder, kill_and_compare

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("language")
    small_language_model.write(
        root / "model",
        [*write_general(root / "general", 30), *(row["text"] for row in projects.licence_rows(80))],
    )
    snapshot = {
        "general": {"path": "general", "max_tokens": 500},
        "replay": {"path": "general", "share": 0.3},
        "max_validation_rows": 6,
    }
    quick = {
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "checkpoint_every_steps": 3,
    }
    return prepare_language_model(root, rows=80, base_model="model", snapshot=snapshot, training=quick)


def fit(case: Prepared, folder: Path, seed: int = 17, **changes: Any) -> Fit:
    chosen = TrainingSettings.model_validate(case.use_case.settings.training.model_dump() | changes)
    return fine_tune(case.recipe, chosen, seed, folder, QUIET, resumable=False)


def train(case: Prepared, key: str, **changes: Any) -> Manifest:
    merged = TrainingSettings.model_validate(case.use_case.settings.training.model_dump() | changes)
    return case.train(key, **dict(merged))


def rise(found: Fit) -> float:
    return found.scores["general_rise"]


class TestDistilledTokenLoss:
    """Against the same computed from all logits, by torch's own gradients."""

    @pytest.fixture(scope="class")
    def models(self, language: Prepared) -> list[torch.nn.Module]:
        student, teacher = load_causal(language.base_model), load_causal(language.base_model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return [student, teacher.requires_grad_(False).eval()]

    @pytest.mark.parametrize("marks_replay", [True, False])
    def test_value_and_gradients(self, models, marks_replay: bool) -> None:
        student, teacher = models
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(1, 512, (3, 20), generator=generator)
        labels = torch.where(torch.rand((3, 20), generator=generator) < 0.7, ids, IGNORED)
        replayed = torch.zeros((3, 20), dtype=torch.bool)
        replayed[0, 8:] = replayed[2, :5] = True
        inputs = {"input_ids": ids, "position_ids": torch.arange(20).expand(3, 20)}
        loss = regularization.DistilledTokenLoss(
            TokenLoss(student, {name: value[:1] for name, value in inputs.items()}), teacher, 0.3
        )
        student.zero_grad()
        marks = {"is_replayed": replayed} if marks_replay else {}
        total_loss = loss.total(student, {**inputs, **marks}, labels)
        total_loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
        student.zero_grad()
        logits, wanted = (model(**inputs).logits[:, :-1] for model in (student, teacher))
        total = torch.zeros(())
        for row, place in torch.nonzero(labels[:, 1:] != IGNORED).tolist():
            taught = not marks_replay or bool(replayed[row, place + 1])
            cross_entropy = functional.cross_entropy(logits[row, place], labels[row, place + 1])
            p, q = (torch.softmax(values[row, place], -1) for values in (wanted, logits))
            total = total + (
                0.7 * cross_entropy + 0.3 * (p * (p / q).log()).sum() if taught else cross_entropy
            )
        total.backward()
        assert float(total_loss) == pytest.approx(float(total.detach()), rel=1e-5)
        for name, parameter in student.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4), name
        assert all(parameter.grad is None for parameter in teacher.parameters())


class TestDistillation:
    def test_batches_mark_which_tokens_are_replayed(self, language: Prepared) -> None:
        recipe = language.recipe
        settings = language.use_case.settings.training.model_copy(
            update={"distillation": DistillationSettings(weight=1.0)}
        )
        feed = recipe.prepare(recipe.load(settings), settings, 17).feed
        counts = [(int(batch["is_replayed"].sum()), batch["is_replayed"].numel()) for batch in feed.batches()]
        share = language.snapshot.metadata["num_replay_tokens"] / recipe.training.packing.num_tokens
        assert sum(count for count, _ in counts) == 2 * language.snapshot.metadata["num_replay_tokens"]
        assert 0.25 < share < 0.4

    def test_holds_an_encoders_representations(self, encoder: Prepared, tmp_path: Path) -> None:
        plain, held = (
            sum(rise(fit(encoder, tmp_path, seed, **lever)) for seed in (17, 18, 19))
            for lever in ({}, {"distillation": {"weight": 0.95}})
        )
        assert 0 < held < 0.5 * plain

    def test_does_not_depend_on_the_size_of_a_pass(self, language: Prepared, tmp_path: Path) -> None:
        losses = []
        for size in (8, 2):
            found = fit(
                language,
                tmp_path,
                micro_batch_size=size,
                epochs=0.5,
                distillation={"weight": 0.5},
            )
            losses.append([line["loss"] for line in found.history if "loss" in line])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class TestEwc:
    def test_importance_is_the_mean_of_the_squared_gradients_of_each_text(self, language: Prepared) -> None:
        recipe, settings = language.recipe, language.use_case.settings.training
        model = recipe.load_original(settings)
        found = regularization.fisher(recipe, model, 17)
        assert sum(float(v.sum()) for v in found.values()) == pytest.approx(
            sum(v.numel() for v in found.values()), rel=1e-3
        )
        name, expected = "model.layers.1.mlp.up_proj.weight", 0
        for chunk in recipe.training.chunks[recipe.training.num_task_chunks :].to_pylist():
            model.zero_grad()
            ids = torch.tensor([chunk])
            functional.cross_entropy(
                model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"
            ).backward()
            expected = expected + dict(model.named_parameters())[name].grad.square()
        assert torch.allclose(
            found[name] / found[name].sum(), expected / expected.sum(), rtol=1e-3, atol=1e-9
        )

    def test_of_an_encoder_comes_from_its_representations(self, encoder: Prepared) -> None:
        found = regularization.fisher(
            encoder.recipe, encoder.recipe.load_original(encoder.use_case.settings.training), 17
        )
        # The new head has no part in it, and there is no pooler, which would read no mean.
        assert not found["classifier.weight"].any() and "bert.pooler.dense.weight" not in found
        assert found["bert.encoder.layer.1.output.dense.weight"].any()

    def test_without_general_text_is_refused(self, tmp_path: Path) -> None:
        case = prepare(tmp_path, tiny=True)
        with pytest.raises(
            SettingsError, match="training.ewc: neither snapshot.replay nor snapshot.general "
        ):
            fit(case, tmp_path / "work", ewc=1.0)
        case.project.configure(base_model="model", training={"ewc": 1.0})
        with pytest.raises(
            SettingsError,
            match="training.ewc: needs general text .*; give snapshot.general ",
        ):
            case.project.use_case()


class TestWeightsInBetween:
    def test_the_best_within_the_budget_is_chosen(self, encoder: Prepared) -> None:
        free = train(encoder, "all", wise_ft=[0.25, 0.5, 1.0], epochs=2.0)
        scores = {line["alpha"]: line for line in free.metadata["wise_ft_scores"]}
        assert free.metadata["wise_ft_alpha"] == min(
            scores, key=lambda alpha: scores[alpha]["validation_loss"]
        )
        assert scores[0.25]["general_rise"] < scores[0.5]["general_rise"] < scores[1.0]["general_rise"]
        budget = (scores[0.25]["general_rise"] + scores[0.5]["general_rise"]) / 2
        made = train(encoder, "within", wise_ft=[0.25, 0.5, 1.0], epochs=2.0, max_general_rise=budget)
        # The budget does not end training: the weights in between keep it.
        assert made.metadata["num_steps"] == free.metadata["num_steps"] and made.metadata["incidents"] == []
        assert made.metadata["wise_ft_alpha"] == 0.25
        for name in ("validation_loss", "general_rise"):
            assert made.metadata[name] == scores[0.25][name]
        base = load_file(encoder.base_model / "model.safetensors")
        whole = train(encoder, "tuned", epochs=2.0)
        tuned = load_file(encoder.store.folder(whole) / "model" / "model.safetensors")
        for name, value in load_file(encoder.store.folder(made) / "model" / "model.safetensors").items():
            start = base.get(name)
            wanted = tuned[name] if start is None else 0.75 * start + 0.25 * tuned[name]
            assert torch.allclose(value, wanted, atol=1e-6), name
        heads = [
            load_file(encoder.store.folder(each) / "model" / "2_Dense" / "model.safetensors")
            for each in (made, whole)
        ]
        assert torch.equal(heads[0]["linear.weight"], heads[1]["linear.weight"])

    def test_none_within_the_budget_is_one_line(self, encoder: Prepared) -> None:
        with pytest.raises(
            DivergenceError, match="no scored weights, .* are within training.max_general_rise"
        ):
            train(encoder, "none", wise_ft=[1.0], max_general_rise=1e-9)

    def test_a_language_models_tied_head_is_interpolated_as_well(
        self, language: Prepared, tmp_path: Path
    ) -> None:
        found = fit(language, tmp_path, wise_ft=[0.5], epochs=0.5)
        tuned = fit(language, tmp_path, epochs=0.5)
        base = dict(load_causal(language.base_model).named_parameters())
        ours = dict(tuned.model.named_parameters())
        assert all(
            torch.allclose(value, (base[name] + ours[name]) / 2, atol=1e-6)
            for name, value in found.model.named_parameters()
        )
        assert found.interpolated.alpha == 0.5


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["language", "encoder"])
def test_scores_are_computed_in_the_precision_of_the_training(
    name: str, chosen: str, request, tmp_path: Path, monkeypatch
) -> None:
    """Also where the machine is good at another: it would decide on the best checkpoint, the budget and the
    weights in between.
    """
    found = []
    for has_bf16 in (False, True):
        monkeypatch.setattr(precision, "_cpu_has_bf16_units", lambda has_bf16=has_bf16: has_bf16)
        done = fit(request.getfixturevalue(name), tmp_path, epochs=0.3, wise_ft=[0.5], precision=chosen)
        scored = [
            {key: line[key] for key in line if key.startswith(("validation_", "general_"))}
            for line in done.history
        ]
        found.append([done.scores, *filter(None, scored)])
    assert found[0] == found[1] and any("validation_loss" in scores for scores in found[0][1:])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"distillation": {"tokens": "replay"}},
            "training.distillation.tokens: `tokens` was removed; the base model teaches replayed documents",
        ),
        (
            {"distillation": {"weight": 1}},
            "training.distillation.weight: 1 leaves nothing to learn of the task itself",
        ),
        ({"wise_ft": [0]}, "training.wise_ft.0: 0: Input should be greater than 0"),
    ],
)
def test_what_contradicts_itself_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    examples = {"task": "language_modeling", "label": None, "labels": None}
    project = projects.create(
        tmp_path, rows=0, training=changes, examples=examples, chunks={"max_chunks": None, "stride": 0}
    )
    with pytest.raises(SettingsError, match=line):
        project.use_case()


ALL = {
    "distillation": {"weight": 0.7},
    "ewc": 0.5,
    "l2_sp": 0.01,
    "wise_ft": [0.5, 1.0],
}


@pytest.mark.slow
@pytest.mark.long
def test_all_together_survive_kills(language: Prepared) -> None:
    changes = dict(TrainingSettings.model_validate(language.use_case.settings.training.model_dump() | ALL))
    made = kill_and_compare(language, "levers", 4, changes)
    assert made.metadata["wise_ft_alpha"] in (0.5, 1.0) and np.isfinite(made.metadata["general_rise"])
