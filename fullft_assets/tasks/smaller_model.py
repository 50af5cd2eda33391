"""The baseline of a smaller model of the same family: all of its weights are trained, with the recipe, the
rows and the settings of the large one.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fullft_assets.base_model import ModelFolder, copy_code, resolve_base_model, with_rights
from fullft_assets.chunks import Tokenization, save_tokenizer
from fullft_assets.errors import DivergenceError, SettingsError
from fullft_assets.snapshot import Split
from fullft_assets.tasks.baseline import Baseline, BaselineContext

if TYPE_CHECKING:
    from fullft_assets.settings import TrainingSettings, UseCaseSettings

#: Training texts whose tokens the two tokenizers must agree on, beside the vocabulary.
_COMPARED_TEXTS = 200


class SmallerModel(Baseline):
    """A fine-tuned smaller model; what is saved is its folder.

    Args:
        folder: of the fine-tuned model.
    """

    name, title = "smaller_model", "smaller model, fully fine-tuned"
    tasks = ("classification", "multi_label", "token_classification", "sft", "language_modeling")
    needs_whole_model = True

    def __init__(
        self, folder: Path, context: BaselineContext, kept: tempfile.TemporaryDirectory[str] | None = None
    ):
        self.folder = folder
        self.context = context
        self._kept = kept

    @classmethod
    def trainings(cls, settings: UseCaseSettings) -> float:
        # An upper bound: how many weights it has is not read here.
        return 1.0

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        from fullft_assets.models import loading
        from fullft_assets.models.hardware import free_memory
        from fullft_assets.training.finetuning import fine_tune

        settings, recipe = context.settings, context.open_recipe()
        assert settings.planning.smaller_model is not None, "the check of the YAML asks for it"
        base = with_rights(
            resolve_base_model(settings.planning.smaller_model, context.project_root), settings
        )
        _require_same_tokenizer(base, context)
        temporary = tempfile.TemporaryDirectory(prefix="fullft-smaller-")
        target = Path(temporary.name) / "model"
        with tempfile.TemporaryDirectory(prefix="fullft-smaller-run-") as folder:
            try:
                fit = fine_tune(
                    recipe.with_model(base),
                    training_settings(settings),
                    settings.seed,
                    Path(folder),
                    context.progress,
                    evaluate_at=[],
                    resumable=False,
                )
            except DivergenceError as error:
                raise DivergenceError(
                    f"baseline smaller_model: {error}; or remove smaller_model from planning.baselines"
                ) from error
        loading.save_model(fit.model, target, settings.chunks.max_tokens)
        save_tokenizer(base, context.added_tokens, target)
        copy_code(base, target)
        del fit
        free_memory()
        return cls(target, context, temporary)

    def predict(self, rows: Split) -> Any:
        from fullft_assets.models import precision

        settings, recipe = self.context.settings, self.context.open_recipe()
        folder = with_rights(self.folder, settings)
        ours = recipe.with_model(folder, start=folder)
        model = ours.load(training_settings(settings))
        # As all baselines are scored, whatever training computes in.
        precision.set_scoring(model, None)
        return ours.predict(model, rows, self.context.progress)

    def save(self, folder: Path) -> None:
        shutil.copytree(self.folder, folder / self.name)

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(folder / cls.name, context)


def training_settings(settings: UseCaseSettings) -> TrainingSettings:
    """Return how the model is trained: as the large one, without what needs checkpoints or a choice between
    weights.
    """
    return settings.training.model_copy(
        update={"max_general_rise": None, "wise_ft": [], "keep_best": False, "track": []}
    )


def _require_same_tokenizer(folder: ModelFolder, context: BaselineContext) -> None:
    """Check that the windows of the snapshot mean the same to a smaller model.

    Raises:
        SettingsError: its tokenizer has other tokens.
    """
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
