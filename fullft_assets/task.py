"""What a model learns to do: one object for each task, with everything in which tasks differ.

Nothing outside a task's folder asks for its name: code asks the object for what it needs to know, such as the
column of the target. Another package adds a task, a metric, a baseline or a gate through an entry point (see
`registry`).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from fullft_assets.registry import Registry, load_attribute

#: Columns of the examples that may hold what a row teaches: one name, a sorted list of names, or spans of
#: characters with names.
Target = Literal["label", "labels", "spans"]


class Task(ABC):
    """One task. A subclass is imported with the definitions, so its methods import heavy libraries, not its
    module.

    Attributes:
        target: column with what a row teaches; None: its text, or its assistant turns, teach the next token.
        is_generative: the model predicts the next token. Training packs documents into rows, replay is
            possible, general text has a loss.
        ends_texts: an end-of-text token follows each text, and windows share no tokens, so that each token is
            trained once.
        plain_task: name of the task whose tokenization reads plain general text.
        min_rows_read: rows that the passes of a training read at least, unless `training.epochs` is given.
        defaults: defaults of settings that differ for this task, by section.
        metrics: names of the metrics that may decide, the default first. They are between 0 and 1, and higher
            is better.
        shown_metrics: names of the metrics in the table of the systems, in order.
        answer_metrics: names of the metrics of what the model writes for test prompts.
        slice_metric: name of the metric of slices of the test rows: one that a few rows can measure. None:
            the metric that decides.
        baselines: names of the baselines by default, the cheapest first.
        more_baselines: names of those that a YAML may ask for beside them; the report says which it did not.
        required_baseline: the one that the report compares the model with in detail; a YAML has to name it.
        has_one_label: whether its model predicts one label of a text, by which live quality and the shares of
            labels in production are measured.
        no_label_weights: why `training.balance_labels` does not apply; None: it does.
        templates: folder with `parts.md.j2`, the macros of what only this task's report and model card have
            (see `report/templates`).
        scoring: `module:function` behind `evaluate`.
        evaluation: `module:class` behind `evaluation_type`.
    """

    name: ClassVar[str]
    target: ClassVar[Target | None] = None
    min_labels: ClassVar[int] = 1
    has_messages: ClassVar[bool] = False
    is_generative: ClassVar[bool] = False
    ends_texts: ClassVar[bool] = False
    plain_task: ClassVar[str] = "classification"
    min_rows_read: ClassVar[int] = 16_000
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    metrics: ClassVar[tuple[str, ...]]
    shown_metrics: ClassVar[tuple[str, ...]]
    answer_metrics: ClassVar[tuple[str, ...]] = ()
    slice_metric: ClassVar[str | None] = None
    baselines: ClassVar[tuple[str, ...]]
    more_baselines: ClassVar[tuple[str, ...]] = ()
    required_baseline: ClassVar[str | None] = None
    has_one_label: ClassVar[bool] = False
    no_label_weights: ClassVar[str | None] = None
    templates: ClassVar[Path]
    scoring: ClassVar[str]
    evaluation: ClassVar[str]

    @property
    def has_labels(self) -> bool:
        """The rows have labels: one, several, or those of spans."""
        return self.target is not None

    @property
    def pipeline_tag(self) -> str | None:
        """What the Hugging Face hub calls this kind of task; None: it has no name for it."""
        if self.target is None:
            return "text-generation" if self.is_generative else None
        return "token-classification" if self.target == "spans" else "text-classification"

    def takes(self, part: str, tasks: Collection[str]) -> bool:
        """Return whether a registered metric or baseline is for this task.

        It is if this task names it, or if it is for this task or for one that this one is a subclass of.

        Args:
            part: name of the metric or baseline.
            tasks: names of the tasks that it is for.
        """
        names = (
            *self.metrics,
            *self.shown_metrics,
            *self.answer_metrics,
            *self.baselines,
            *self.more_baselines,
        )
        return part in names or any(vars(base).get("name") in tasks for base in type(self).__mro__)

    # What follows runs in processes that were launched. Its types are in layers above this one, and are named
    # in words.

    @abstractmethod
    def open_recipe(self, data: Any) -> Any:
        """Return the `training.recipe.Recipe` of a `tasks.context.TrainingData`."""

    def evaluate(self, context: Any, test: Any) -> Any:
        """Return the `tasks.context.EvaluationResult` of a `tasks.context.EvaluationContext` on the test
        rows, a `snapshot.Split`.
        """
        return load_attribute(self.scoring)(context, test)

    def evaluation_type(self) -> Any:
        """Return the subclass of `evaluation.Evaluation` that this task's evaluations are stored as."""
        return load_attribute(self.evaluation)

    def draw(self, evaluation: Any) -> Mapping[str, Any]:
        """Return the matplotlib figures that only this task's report has, by name; a figure may be None."""
        return {}

    @abstractmethod
    def predict(
        self, model: Any, settings: Any, labels: Sequence[str], texts: Sequence[str], max_new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the model's prediction for each text, as an object that JSON can write.

        Args:
            model: a `base_model.ModelFolder` with a fine-tuned model.
            labels: in the order of the model's outputs.
        """

    @abstractmethod
    def show(self, prediction: Mapping[str, Any]) -> Iterator[str]:
        """Yield the lines that `fullft predict` prints for a prediction."""


TASKS: Registry[Task] = Registry(
    "task",
    "fullft_assets.tasks",
    {
        "classification": "fullft_assets.tasks.classification.task:CLASSIFICATION",
        "multi_label": "fullft_assets.tasks.classification.task:MULTI_LABEL",
        "token_classification": "fullft_assets.tasks.token_classification.task:TASK",
        "sft": "fullft_assets.tasks.language.task:SFT",
        "language_modeling": "fullft_assets.tasks.language.task:LANGUAGE_MODELING",
    },
)
#: The tasks that documents from elsewhere, such as general text or evaluation sets, are read as.
CONVERSATIONS = "sft"
PLAIN_TEXT = "language_modeling"
#: Implementations of `evaluation.metrics.Metric`.
METRICS: Registry[Any] = Registry(
    "metric",
    "fullft_assets.metrics",
    {
        "macro_f1": "fullft_assets.evaluation.metrics.labels:MACRO_F1",
        "micro_f1": "fullft_assets.evaluation.metrics.labels:MICRO_F1",
        "accuracy": "fullft_assets.evaluation.metrics.labels:ACCURACY",
        "subset_accuracy": "fullft_assets.evaluation.metrics.labels:SUBSET_ACCURACY",
        "token_probability": "fullft_assets.evaluation.metrics.texts:TOKEN_PROBABILITY",
        "token_accuracy": "fullft_assets.evaluation.metrics.texts:TOKEN_ACCURACY",
        "perplexity": "fullft_assets.evaluation.metrics.texts:PERPLEXITY",
        "exact_match": "fullft_assets.evaluation.metrics.texts:EXACT_MATCH",
        "rouge_l": "fullft_assets.evaluation.metrics.texts:ROUGE_L",
        "chrf": "fullft_assets.evaluation.metrics.texts:CHRF",
        "auroc": "fullft_assets.evaluation.metrics.labels:AUROC",
    },
)
#: Implementations of `evaluation.gates.Gate`, in the order of the report.
GATES: Registry[Any] = Registry(
    "gate",
    "fullft_assets.gates",
    {
        "test_set_is_large_enough": "fullft_assets.evaluation.gates:TEST_SET_IS_LARGE_ENOUGH",
        "beats_baselines": "fullft_assets.evaluation.gates:BEATS_BASELINES",
        "beats_champion": "fullft_assets.evaluation.gates:BEATS_CHAMPION",
        "score_is_sufficient": "fullft_assets.evaluation.gates:SCORE_IS_SUFFICIENT",
        "forgetting_is_within_budget": ("fullft_assets.evaluation.gates:FORGETTING_IS_WITHIN_BUDGET"),
        "no_slice_is_worse": "fullft_assets.evaluation.gates:NO_SLICE_IS_WORSE",
        "is_calibrated": "fullft_assets.evaluation.gates:IS_CALIBRATED",
    },
)
#: Subclasses of `tasks.baseline.Baseline`.
BASELINES: Registry[Any] = Registry(
    "baseline",
    "fullft_assets.baselines",
    {
        "majority": "fullft_assets.tasks.classification.baselines:Majority",
        "label_shares": "fullft_assets.tasks.classification.baselines:LabelShares",
        "tfidf": "fullft_assets.tasks.classification.baselines:Tfidf",
        "frozen_probe": "fullft_assets.tasks.classification.baselines:FrozenProbe",
        "no_spans": "fullft_assets.tasks.token_classification.baselines:NoSpans",
        "dictionary": "fullft_assets.tasks.token_classification.baselines:Dictionary",
        "token_probe": "fullft_assets.tasks.token_classification.baselines:TokenProbe",
        "base_model": "fullft_assets.tasks.prompting:BaseModel",
        "zero_shot": "fullft_assets.tasks.prompting:ZeroShot",
        "few_shot": "fullft_assets.tasks.prompting:FewShot",
        "bedrock": "fullft_assets.tasks.classification.bedrock:Bedrock",
        "lora": "fullft_assets.tasks.trained:Lora",
    },
)


class NamesTask(Protocol):
    """Settings that name a task: the section `examples`."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...


def task_of(examples: NamesTask) -> Task:
    """Return the task that the section `examples` names."""
    return TASKS.get(examples.task)
