"""The baseline LoRA, trained with the task's own recipe, rows, order and schedule.

The base model stays as it is, and each linear layer learns an update of low rank (Hu et al. 2021,
arXiv:2106.09685), at a rate of its own. What is new in the model (its head, a pooler) and what is above the
layers is trained whole, as full fine-tuning trains it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

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


@dataclass(frozen=True)
class Lora(Baseline):
    """The base model with trained adapters; what is saved are the trained weights alone.

    Attributes:
        weights: the trained ones by their names in the model.
    """

    name = "lora"
    title = "LoRA"
    tasks = ("classification", "multi_label", "token_classification", "sft", "language_modeling")
    needs_whole_model = True
    serving_rank = 2

    rank: int
    weights: dict[str, torch.Tensor]
    context: BaselineContext

    @classmethod
    def trainings(cls, settings: UseCaseSettings) -> float:
        return _TIMES_THE_TIME * lora_settings(settings).num_epochs / settings.training.num_epochs

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        from fullft_assets.models.hardware import free_memory
        from fullft_assets.training.finetuning import fine_tune

        recipe: Any = AdaptedRecipe(context.open_recipe())
        with tempfile.TemporaryDirectory(prefix="fullft-lora-") as folder:
            try:
                fit = fine_tune(
                    recipe,
                    lora_settings(context.settings),
                    context.settings.seed,
                    Path(folder),
                    context.progress,
                    max_memory_gib=context.settings.planning.max_memory_gib,
                    evaluate_at=[],
                    resumable=False,
                )
            except DivergenceError as error:
                raise DivergenceError(
                    f"baseline lora: {error}; lower training.learning_rate, or remove lora from"
                    " planning.baselines"
                ) from error
        model = fit.model
        weights = {
            name: weight.detach().cpu() for name, weight in model.named_parameters() if weight.requires_grad
        }
        del fit, model
        free_memory()
        return cls(RANK, weights, context)

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

    def general_scores(self) -> dict[str, float]:
        recipe: Any = self.context.open_recipe()
        if recipe.general is None:
            return {}
        # Adapters that are new change nothing: one loading serves both.
        model = self._untrained()
        before = recipe.score_general(model, self.context.progress)
        _load_trained(model, self.weights)
        after = recipe.score_general(model, self.context.progress)
        ((name, value),) = before.items()
        return after | {"general_before": value, "general_rise": after[name] - value}

    def _model(self) -> PreTrainedModel:
        model = self._untrained()
        _load_trained(model, self.weights)
        return model

    def _untrained(self) -> PreTrainedModel:
        from fullft_assets.models import precision

        model = adapt(self.context.open_recipe(), lora_settings(self.context.settings), self.rank)
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
    return training.model_copy(
        update={
            "learning_rate": training.learning_rate and min(_TIMES_THE_RATE * training.learning_rate, 0.5),
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
    )


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


@dataclass(frozen=True)
class AdaptedRecipe:
    """A task's recipe whose model is the base model with adapters."""

    rate_factor: ClassVar[int] = _TIMES_THE_RATE
    _recipe: Recipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recipe, name)

    def first(self, num_rows: int) -> AdaptedRecipe:
        return AdaptedRecipe(self._recipe.first(num_rows))

    def load(self, settings: TrainingSettings) -> PreTrainedModel:
        return adapt(self._recipe, settings, RANK)

    def score_general(self, model: PreTrainedModel, listener: Any) -> dict[str, float]:
        return {}


def _load_trained(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if names != set(weights):
        raise StoreError(
            f"{_FILE}: {min(names ^ set(weights))} is not a trained weight of both the file and base_model;"
            " materialise cheaper_baselines again"
        )
    model.load_state_dict(weights, strict=False)
