"""Baselines that train a model with the task's own recipe, rows, order and schedule: adapters, or a smaller
model.

LoRA: the base model stays as it is, and each linear layer learns an update of low rank (Hu et al. 2021,
arXiv:2106.09685), at a rate of its own. What is new in the model (its head, a pooler) and what is above the
layers is trained whole, as full fine-tuning trains it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fullft_assets.base_model import ModelFolder, resolve_base_model, with_rights
from fullft_assets.chunks import Tokenization
from fullft_assets.errors import DivergenceError, SettingsError, StoreError
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext, export_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from fullft_assets.settings import TrainingSettings, UseCaseSettings
    from fullft_assets.training.recipe import Recipe


#: An update is scaled by this divided by the rank, so that the best learning rate does not depend on the
#: rank, and is about ten times that of full fine-tuning (Schulman et al. 2025, "LoRA Without Regret").
_ALPHA = 32
#: Rank of the adapters, which every linear layer of the model has.
RANK = 16
_TIMES_THE_RATE = 10
#: What an epoch takes against one of full fine-tuning, as measured for docs/decisions/0023.
_TIMES_THE_TIME = 1.26
_FILE = "lora.safetensors"
#: Training texts whose tokens the two tokenizers must agree on, beside the vocabulary.
_COMPARED_TEXTS = 200


class _Trained(Baseline):
    tasks = ("classification", "multi_label", "token_classification", "sft", "language_modeling")
    needs_whole_model = True

    @classmethod
    def _fine_tune(
        cls, recipe: Any, training: TrainingSettings, context: BaselineContext, advice: str
    ) -> Any:
        """Return the trained model.

        Raises:
            DivergenceError: it diverged; the message ends with the advice.
        """
        from fullft_assets.training.finetuning import fine_tune

        with tempfile.TemporaryDirectory(prefix=f"fullft-{cls.name}-") as folder:
            try:
                return fine_tune(
                    recipe,
                    training,
                    context.settings.seed,
                    Path(folder),
                    context.progress,
                    evaluate_at=[],
                    resumable=False,
                ).model
            except DivergenceError as error:
                raise DivergenceError(f"baseline {cls.name}: {error}{advice} planning.baselines") from error


class Lora(_Trained):
    """The base model with trained adapters; what is saved are the trained weights alone.

    Args:
        weights: the trained ones by their names in the model.
    """

    name, title = "lora", "LoRA"
    serving_rank = 2

    def __init__(self, rank: int, weights: dict[str, torch.Tensor], context: BaselineContext):
        self.rank = rank
        self.weights = weights
        self.context = context

    @classmethod
    def trainings(cls, settings: UseCaseSettings) -> float:
        return _TIMES_THE_TIME * lora_settings(settings).num_epochs / settings.training.num_epochs

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        from fullft_assets.models.hardware import free_memory

        settings = context.settings
        adapted = _AdaptedRecipe(context.open_recipe(), RANK)
        advice = "; lower training.learning_rate, or remove lora from"
        model = cls._fine_tune(adapted, lora_settings(settings), context, advice)
        trained = {
            name: weight.detach().cpu() for name, weight in model.named_parameters() if weight.requires_grad
        }
        del model
        free_memory()
        return cls(RANK, trained, context)

    def predict(self, rows: Split) -> Any:
        return self.context.open_recipe().predict(self._model(), rows, self.context.progress)

    def export(self, folder: Path, context: BaselineContext) -> None:
        from peft.tuners.lora import LoraLayer

        model = self._model()
        for name, layer in list(model.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        export_model(model, folder, context)

    def _model(self) -> PreTrainedModel:
        from fullft_assets.models import precision

        model = adapt(self.context.open_recipe(), lora_settings(self.context.settings), self.rank)
        _load_trained(model, self.weights)
        # As all baselines are scored, whatever training computes in.
        precision.set_scoring(model, None)
        return model

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(
            {name: weight.contiguous() for name, weight in self.weights.items()},
            folder / _FILE,
            {"rank": str(self.rank)},
        )

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        from safetensors import safe_open

        with safe_open(folder / _FILE, "pt") as file:
            names = file.keys()
            return cls(int(file.metadata()["rank"]), {name: file.get_tensor(name) for name in names}, context)


def lora_settings(settings: UseCaseSettings) -> TrainingSettings:
    """Return how the adapters are trained: as the model would be, without what is about its own weights or
    saves their memory.
    """
    training = settings.training
    changes = {
        "learning_rate": min(_TIMES_THE_RATE * training.learning_rate, 0.5),
        "optimizer": "adamw",
        "freeze_layers": 0,
        "l2_sp": 0.0,
        "ewc": 0.0,
        "wise_ft": [],
        "distillation": None,
        "max_general_rise": None,
        "compile": False,
        "track": [],
    }
    return training.model_copy(update=changes)


def adapt(recipe: Recipe, settings: TrainingSettings, rank: int) -> PreTrainedModel:
    """Return the base model with untrained adapters on the linear layers of its blocks; all else is frozen
    but what is above them.

    Above the blocks of a model with a new head nothing is frozen: its weights may be new, such as a pooler
    that the base model lacks.

    Raises:
        SettingsError: the blocks have no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from fullft_assets.models import layers

    model = recipe.load_original(settings)
    count = layers.num_layers(name for name, _ in model.named_parameters())
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    targets = [name for name in linear if 0 < layers.depth(f"{name}.", count) <= count]
    if not targets:
        raise SettingsError(
            "baseline lora: the layers of base_model are not linear ones; remove lora from planning.baselines"
        )
    above = [parameter for name, parameter in model.named_parameters() if layers.depth(name, count) > count]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=_ALPHA, target_modules=targets), model)
    for parameter in above:
        parameter.requires_grad_(recipe.has_new_head)
    return model


class _AdaptedRecipe:
    def __init__(self, recipe: Recipe, rank: int):
        self._recipe, self._rank = recipe, rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recipe, name)

    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        return adapt(self._recipe, settings, self._rank)

    def score_general(self, model: PreTrainedModel, listener: Any) -> dict[str, float]:
        return {}


def _load_trained(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wanted != set(weights):
        odd = sorted(wanted ^ set(weights))[0]
        raise StoreError(
            f"{_FILE}: {odd} is not a trained weight of both the file and base_model; materialise"
            " cheaper_baselines again"
        )
    model.load_state_dict(weights, strict=False)


class SmallerModel(_Trained):
    """A smaller model of the same family, all of whose weights are trained; what is saved is its folder.

    Args:
        folder: of the fine-tuned model.
    """

    name, title = "smaller_model", "smaller model, fully fine-tuned"
    serving_rank = 1

    def __init__(
        self,
        folder: Path,
        context: BaselineContext,
        temporary: tempfile.TemporaryDirectory[str] | None = None,
    ):
        self.folder = folder
        self.context = context
        self._temporary = temporary

    @classmethod
    def trainings(cls, settings: UseCaseSettings) -> float:
        # An upper bound: how many weights it has is not read here.
        return 1.0

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        from fullft_assets.models.hardware import free_memory

        settings = context.settings
        assert settings.planning.smaller_model is not None, "the check of the YAML asks for it"
        base = with_rights(
            resolve_base_model(settings.planning.smaller_model, context.project_root), settings
        )
        _require_same_tokenizer(base, context)
        recipe = context.open_recipe().with_model(base)
        model = cls._fine_tune(
            recipe, smaller_model_settings(settings), context, "; or remove smaller_model from"
        )
        temporary = tempfile.TemporaryDirectory(prefix="fullft-smaller-")
        target = Path(temporary.name) / "model"
        export_model(model, target, replace(context, base_model=base))
        del model
        free_memory()
        return cls(target, context, temporary)

    def predict(self, rows: Split) -> Any:
        from fullft_assets.models import precision

        settings = self.context.settings
        folder = with_rights(self.folder, settings)
        recipe = self.context.open_recipe().with_model(folder, start=folder)
        model = recipe.load(smaller_model_settings(settings))
        # As all baselines are scored, whatever training computes in.
        precision.set_scoring(model, None)
        return recipe.predict(model, rows, self.context.progress)

    def save(self, folder: Path) -> None:
        shutil.copytree(self.folder, folder / self.name)

    def export(self, folder: Path, context: BaselineContext) -> None:
        shutil.copytree(self.folder, folder)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(folder / cls.name, context)


def smaller_model_settings(settings: UseCaseSettings) -> TrainingSettings:
    """Return how the model is trained: as the large one, without what needs checkpoints or a choice between
    weights.
    """
    return settings.training.model_copy(
        update={"max_general_rise": None, "wise_ft": [], "keep_best": False, "track": []}
    )


def _require_same_tokenizer(folder: ModelFolder, context: BaselineContext) -> None:
    chunks, task = context.settings.chunks, context.settings.examples.task
    base, smaller = (Tokenization.load(each, chunks, task) for each in (context.base_model, folder))
    texts = context.train_rows().texts[:_COMPARED_TEXTS]
    special = [
        (each.prefix, each.suffix, each.end_id, each.tokenizer.get_vocab()) for each in (base, smaller)
    ]
    if (
        special[0] != special[1]
        or base.encode(texts) != smaller.encode(texts)
        or _template(base) != _template(smaller)
    ):
        raise SettingsError(
            "planning.smaller_model: its tokenizer is not that of base_model, which made the snapshot's"
            " windows; give a model of the same family"
        )


def _template(tokenization: Tokenization) -> str | None:
    return None if tokenization.chat is None else tokenization.chat.source
