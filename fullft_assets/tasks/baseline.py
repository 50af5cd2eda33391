"""The protocol of a baseline: a cheaper system that a fine-tuned model must beat."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fullft_assets.artifacts import BASELINE_FILE
from fullft_assets.base_model import ModelFolder, copy_code, with_rights
from fullft_assets.checkpoint.metadata import CheckpointMetadata
from fullft_assets.chunks import save_tokenizer
from fullft_assets.progress import Listener, Progress
from fullft_assets.snapshot import Split, load_split
from fullft_assets.store import Manifest, Store
from fullft_assets.task import BASELINES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fullft_assets.settings import UseCaseSettings
    from fullft_assets.training.recipe import Recipe


#: Each label's threshold, where rows may have several labels and the model's configuration has none.
THRESHOLDS = "thresholds.npz"


def _without_recipe() -> "Recipe":
    raise AssertionError("the recipe that fits the baselines adds itself")


@dataclass(frozen=True)
class BaselineContext:
    """What a baseline may use beside rows.

    Attributes:
        project_root: where relative references in the settings start.
        settings: of the use case, for baselines that train or that have settings of their own.
        paid: US dollars that services charged, by baseline, beside the machine's time; a baseline adds its
            own.
        train_rows: reads the snapshot's training rows, in the evaluation as well, for baselines that show
            some of them to a model.
        open_recipe: returns the task's recipe, to load a model and to have it predict. In an evaluation it
            has no training rows.
        shares_models: whether several processes, which all fit and predict, share the baseline's model.
    """

    base_model: ModelFolder
    labels: Sequence[str]
    progress: Progress
    settings: "UseCaseSettings"
    train_rows: Callable[[], Split]
    added_tokens: Sequence[str] = ()
    project_root: Path = Path()
    paid: dict[str, float] = field(default_factory=dict)
    open_recipe: Callable[[], "Recipe"] = _without_recipe
    shares_models: bool = False

    def of(self, baseline: type["Baseline"]) -> Self:
        """Return the context of one baseline: whose model is not shared, the first process fits alone."""
        return replace(self, shares_models=self.shares_models and baseline.shares_model)

    @property
    def listener(self) -> Listener:
        """What the passes of a model listen to that processes share."""
        from fullft_assets.training.ranks import StopListener

        return StopListener(self.progress) if self.shares_models else self.progress


class Baseline(ABC):
    """A fitted baseline. The class is registered; its module is imported for titles alone, so methods import
    heavy libraries.

    Attributes:
        needs_causal_model: it asks the base model to go on with a text, so that has to be a language model.
        needs_whole_model: it works on the complete model in one process, so not where `training.sharding`
            shares one that is too large.
        shares_model: processes that share the model with `training.sharding` fit and predict together.
        is_start: a training with a new head begins as it.
        needs_network: it asks a service, so not in a container without a network.
        serving_rank: its rank by the cost of a prediction, the cheapest first; see `release.decision`. None:
            it cannot become champion.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    needs_causal_model: ClassVar[bool] = False
    needs_whole_model: ClassVar[bool] = False
    shares_model: ClassVar[bool] = False
    is_start: ClassVar[bool] = False
    needs_network: ClassVar[bool] = False
    serving_rank: ClassVar[int | None] = None

    @classmethod
    def trainings(cls, settings: "UseCaseSettings") -> float:
        """Return how many full trainings it takes to fit, roughly; the plan charges them before anything is
        fitted.
        """
        return 0.0

    @classmethod
    @abstractmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        """Learn from the training rows: a `snapshot.Split`, for tasks that pack rows a
        `snapshot.Training`.
        """

    @abstractmethod
    def predict(self, rows: Split) -> Any:
        """Return the baseline's predictions for rows.

        Returns:
            classification: label probabilities [rows, labels]; multi_label: each label's own probability
                [rows, labels];
            token_classification: a list of spans (start, end, label number) for each row;
            sft and language_modeling: the `DocumentScores` of the rows.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was learned as JSON or npz, named after the baseline, never pickled.

        The file may contain no text of a row: an erasure cannot remove a row from what was learned.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        """Read what `save` wrote."""

    def general_scores(self) -> dict[str, float]:
        """Return what a baseline that changes the base model forgot of general text: the scores that
        `CheckpointMetadata` has.
        """
        return {}

    def export(self, folder: Path, context: BaselineContext) -> None:
        """Write the model folder of a champion: what `save` writes, and which baseline it is.

        A baseline that is a model of transformers writes that instead, which is read as a fine-tuned one is.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.save(folder)
        (folder / BASELINE_FILE).write_text(
            json.dumps({"baseline": self.name, "labels": list(context.labels)}, ensure_ascii=False),
            encoding="utf-8",
        )


@dataclass(frozen=True)
class UntrainedBaseline(Baseline):
    """A baseline that learns nothing from the training rows."""

    context: BaselineContext

    @classmethod
    def fit(cls, train: Any, context: BaselineContext) -> Self:
        return cls(context)

    def save(self, folder: Path) -> None:
        pass

    @classmethod
    def load(cls, folder: Path, context: BaselineContext) -> Self:
        return cls(context)


def fit_all(
    names: Iterable[str], train: Any, context: BaselineContext, folder: Path
) -> Iterator[tuple[str, Baseline]]:
    """Fit registered baselines one after the other, save each, and yield it with its name."""
    for name in names:
        baseline = BASELINES.get(name).fit(train, context.of(BASELINES.get(name)))
        baseline.save(folder)
        yield name, baseline


def load_all(names: Iterable[str], folder: Path, context: BaselineContext) -> dict[str, Baseline]:
    """Return the baselines of a `cheaper_baselines` artifact by name."""
    return {name: BASELINES.get(name).load(folder, context.of(BASELINES.get(name))) for name in names}


def export_model(model: "PreTrainedModel", folder: Path, context: BaselineContext) -> None:
    """Write a model that was made of the base model as a folder of transformers."""
    from fullft_assets.models import loading

    loading.save_model(model, folder, context.settings.chunks.max_tokens)
    save_tokenizer(context.base_model, context.added_tokens, folder)
    copy_code(context.base_model, folder)


@dataclass(frozen=True)
class StoredBaseline:
    """A champion that is no model of transformers, opened.

    Attributes:
        labels: in the order of what it predicts.
        folder: the folder that it was read from.
    """

    baseline: Baseline
    labels: list[str]
    folder: Path

    def predict(self, texts: Sequence[str]) -> Any:
        """Return the predictions for texts, see `Baseline.predict`."""
        names = [str(number) for number in range(len(texts))]
        chunks: list[list[list[int]]] = [[] for _ in texts]
        return self.baseline.predict(Split(names, list(texts), np.zeros(len(texts), np.int64), names, chunks))


#: An opened model folder: of transformers, or a baseline.
OpenedModel = ModelFolder | StoredBaseline


def open_model(
    store: Store, checkpoint: Manifest, settings: "UseCaseSettings", progress: Progress | None = None
) -> OpenedModel:
    """Return the model of a `finetuned_checkpoint` or a `baseline_model`: a folder of transformers with its
    rights, or a baseline.

    The examples of a prompt are read from the snapshot, so a row that was erased is no longer shown.
    """
    folder = store.folder(checkpoint) / "model"
    if not (folder / BASELINE_FILE).is_file():
        return with_rights(folder, settings)
    about = json.loads((folder / BASELINE_FILE).read_text(encoding="utf-8"))
    snapshot = CheckpointMetadata.of(checkpoint).snapshot
    context = BaselineContext(
        with_rights(folder, settings),
        about["labels"],
        progress or Progress(silent=True),
        settings,
        lambda: load_split(store, store.load(snapshot), "train", chunks=False),
    )
    return StoredBaseline(BASELINES.get(about["baseline"]).load(folder, context), about["labels"], folder)
