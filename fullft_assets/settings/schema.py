"""What a use case's YAML may say: plain pydantic, one class a stage, no Dagster.

Each field carries a description, a bound and the default that a practitioner would choose. Only
`base_model`, `documents.path` and `examples.label` have no default.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, LiteralString, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from fullft_assets.task import BASELINES, METRICS, TASKS, task_of


class _YamlNumber:
    """YAML 1.1 reads `1e-4` (no dot) as text; pydantic takes it for the number that it is, and so must the JSON schema."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(core_schema), {"type": "string", "pattern": r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"}]}


Float = Annotated[float, _YamlNumber()]


class _YamlOff:
    """YAML 1.1 reads a bare `off` as false: where a setting may be `off`, false says so, in the JSON schema as well."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(lambda value: "off" if value is False else value, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": False}]}


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, and name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    #: Keys that most use cases must give although they have a default: messages name them beside the required ones.
    USUAL: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_near_matches(cls, data: Any, handler: ModelWrapValidatorHandler) -> Any:
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [cls._with_suggestion(e) for e in error.errors(include_url=False)]
            ) from None

    @classmethod
    def _with_suggestion(cls, error: ErrorDetails) -> InitErrorDetails:
        message = error["msg"]
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            message = f"unknown key `{error['loc'][0]}`"
            near = difflib.get_close_matches(str(error["loc"][0]), cls.model_fields, n=1, cutoff=0.6)
            message += f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(cls.model_fields)}"
        # Braces in a message are template fields to pydantic: the text is passed as a value.
        custom = PydanticCustomError(cast(LiteralString, error["type"]), "{message}", {"message": message})
        return InitErrorDetails(type=custom, loc=error["loc"], input=error["input"])


class DocumentsSettings(Settings):
    """Where the raw documents are delivered, and how a sensor cuts them into batches."""

    path: str = Field(
        description="Folder with the delivered files, relative to the project root; or s3://bucket/prefix; or a folder saved by `datasets`."
    )
    format: str = Field(
        default="auto",
        description="`auto` goes by the file's ending, and by its content for .json; else a registered format, such as `csv` or "
        "`label_studio`. A last .gz or .zst is unpacked.",
    )
    text: str | None = Field(
        default=None,
        description="Field that holds the text. Default: `source` in Ground Truth manifests, `text` elsewhere. "
        "A plain text, Markdown, HTML or PDF file is one document with the fields `text`, `file` and `folder`.",
    )
    id: str = Field(default="id", description="Field with the document's own id; a row without one is named file:row.")
    annotator: str = Field(
        default="annotator", description="Field with the annotator. Where several annotators answered, their agreement is measured."
    )
    time: str = Field(default="time", description="Field with the time of the annotation.")
    encoding: str | None = Field(default=None, description="Encoding of the text files, such as `cp1252`. Default: detected, file by file.")
    queue: str | None = Field(
        default=None, pattern=r"^https?://", description="URL of an SQS queue with the bucket's S3 events. Default: the prefix is listed."
    )
    attribution: str = Field(default="", description="Source, licence and attribution of the documents; shown on the model card.")
    max_batch_files: int = Field(default=1_000, ge=1, le=100_000, description="Maximum number of files in one batch.")
    max_batch_bytes: int = Field(
        default=256 * 2**20, ge=1, description="Maximum size of one batch in bytes; a larger file is a batch of its own."
    )
    max_runs_per_tick: int = Field(
        default=50,
        ge=1,
        le=1_000,
        description="Maximum number of ingest runs that the sensor launches in one tick; later ticks launch the rest.",
    )
    settle_seconds: Float = Field(
        default=1.0, ge=0, le=86_400, description="A file written to within this time may still be growing, so it waits for the next tick."
    )
    poll_seconds: int = Field(default=30, ge=1, le=86_400, description="Minimum time in seconds between two ticks of the sensor.")


class OneOf:
    """A name out of a list that other packages may add to: the JSON schema has the names, and another one is an error with a hint."""

    def __init__(self, kind: str, names: Callable[[], list[str]]):
        self.kind, self.names = kind, names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}

    def _check(self, name: str) -> str:
        known = self.names()
        if name in known:
            return name
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        raise PydanticCustomError("unknown_name", "{message}", {"message": f"unknown {self.kind} `{name}`; {hint}"})


TaskName = Annotated[str, OneOf("task", lambda: TASKS.names)]
MetricName = Annotated[str, OneOf("metric", lambda: METRICS.names)]
BaselineName = Annotated[str, OneOf("baseline", lambda: BASELINES.names)]
Severity = Annotated[Literal["error", "warn", "off"], _YamlOff()]
#: Rules that `examples.severities` may tune; `error` = the batch goes no further while the rule is red.
RULES = (
    "rows_are_well_formed",
    "texts_are_present",
    "text_lengths_are_in_bounds",
    "languages_are_expected",
    "encodings_are_intact",
    "personal_data_is_absent",
    "labels_are_present",
    "labels_are_known",
    "spans_are_in_range",
    "assistant_turns_are_present",
    "annotations_are_confident",
    "annotations_are_human",
    "ids_are_unique",
    "texts_are_unique",
    "equal_texts_have_equal_labels",
    "labels_are_balanced",
    "annotators_agree",
    "rows_suffice",
)


class Expectation(Settings):
    """One expectation of Great Expectations on the profile of a batch, by the name that it has there."""

    name: str = Field(pattern=r"^expect_[a-z0-9_]+$", description="The expectation, such as `expect_column_values_to_be_between`.")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Its arguments. Columns of the profile: well_formed, num_characters, num_words, label, confidence, human_annotated, "
        "domain, group, language, damage_share, num_personal_data, num_labels, num_turns.",
    )
    severity: Literal["error", "warn", "quarantine"] = Field(
        default="warn",
        description="`quarantine`: the failing rows are quarantined; `error`: the batch goes no further; `warn`: the check only warns.",
    )


class ExamplesSettings(Settings):
    """What makes a document a valid labelled example."""

    USUAL: ClassVar[tuple[str, ...]] = ("label",)

    task: TaskName = Field(
        default="classification",
        description="What the model learns to do: `classification` (one label a row), `multi_label` (a list of labels in the field "
        "`label`), `token_classification` (spans), `sft` (conversations) or `language_modeling` (plain text).",
    )
    label: str | None = Field(
        default=None,
        description="Field (Ground Truth: label attribute) that holds the label, the labels or the spans; `folder` where the name of a "
        "file's folder is its label.",
    )
    group: str | None = Field(
        default=None,
        description="Field that ties related rows (patient, contract family, author). Rows of one group are never in two splits.",
    )
    domain: str | None = Field(
        default=None,
        description="Field with a row's domain (department, kind of document); its shares are compared with those of production.",
    )
    labels: list[str] | None = Field(
        default=None,
        min_length=2,
        description="The known labels; a row with any other label is quarantined. Default: every label that occurs.",
    )
    min_characters: int = Field(default=1, ge=1, description="A shorter text is quarantined.")
    max_characters: int = Field(default=1_000_000, ge=1, description="A longer text is quarantined.")
    languages: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Languages (ISO 639-1, such as `en`) that texts may be in. Default: languages are not identified.",
    )
    max_damage_share: Float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of damaged characters (replacement, control, mis-decoded) above which a text is quarantined.",
    )
    pii: Annotated[Literal["off", "flag", "mask", "quarantine"], _YamlOff()] = Field(
        default="off",
        description="Personal data in texts (e-mail, telephone, payment card, IBAN, social security number, IP address): "
        "`flag` counts it, `mask` replaces it, `quarantine` quarantines the row.",
    )
    min_confidence: Float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="A row with a lower annotation confidence is quarantined. Ground Truth writes 0 for a single worker.",
    )
    human_annotated_only: bool = Field(
        default=False, description="Quarantine rows that a machine annotated (Ground Truth: `human-annotated: no`)."
    )
    min_label_share: Float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="A label with a smaller share of the valid rows raises a warning, in batches of at least 100 rows.",
    )
    min_agreement: Float = Field(
        default=0.6, ge=-1, le=1, description="Minimum Cohen's or Fleiss' kappa; below it the check on annotator agreement is red."
    )
    min_batch_rows: int = Field(default=1, ge=1, description="A batch with fewer valid rows raises a warning.")
    max_quarantined_share: Float = Field(
        default=0.5, ge=0, le=1, description="A batch with a larger share of quarantined rows is held back (blocking check)."
    )
    severities: dict[str, Severity] = Field(
        default_factory=dict, description=f"Severity of a rule by its name, instead of its default. Rules: {', '.join(RULES)}."
    )
    expectations: list[Expectation] = Field(default_factory=list, description="Your own rules, by their Great Expectations names.")


class ChunksSettings(Settings):
    """How a text becomes the windows that the model reads."""

    max_tokens: int = Field(
        default=256, ge=8, le=1_048_576, description="Longest window in tokens, special tokens included; at most what the model takes."
    )
    stride: int = Field(
        default=32,
        ge=0,
        description="Tokens that two neighbouring windows of a long text share, so that context is kept. Default for language_modeling: "
        "0, so that each token is trained once.",
    )
    max_windows: int | None = Field(
        default=None, ge=1, description="Maximum number of windows of one text; tokens that are cut off are counted. Default: no limit."
    )
    boundaries: Literal["any", "sentence", "paragraph"] = Field(
        default="sentence",
        description="Where a window of a long text should end if possible: it is shortened by at most a quarter for that. Default for "
        "language_modeling: any, so that rows are full.",
    )
    train_on: Literal["assistant", "last_turn", "everything"] = Field(
        default="assistant", description="Which tokens of a conversation are trained: all assistant turns, the last one, or every token."
    )
    added_tokens: list[str] = Field(
        default_factory=list, description="Domain terms that are added to the tokenizer as tokens; the tokenizer audit proposes some."
    )
    terms: list[str] = Field(
        default_factory=list, description="Domain terms that the tokenizer audit looks at. Default: mined from the corpus."
    )
    general_words: str | None = Field(
        default=None,
        min_length=1,
        description="General language that mined terms are compared with: a language that has a word list (`en`, `de`; ISO 639-1), the "
        "path of your own list (UTF-8; on each line a word, or a word, a tab and its count), or `vocabulary`: only the tokenizer's "
        "vocabulary. Default: the lists of examples.languages, else of the language of the most common words; the vocabulary where there "
        "is no list.",
    )
    max_term_pieces: Float = Field(default=3.0, ge=1, description="Mean number of tokens per domain term above which the audit warns.")
    max_unknown_share: Float = Field(default=0.001, ge=0, le=1, description="Share of unknown tokens above which the audit warns.")
    max_byte_fallback_share: Float = Field(
        default=0.01, ge=0, le=1, description="Share of byte-fallback tokens above which the audit warns."
    )


class ReplaySettings(Settings):
    """General data mixed into training, so that the model forgets less."""

    path: str = Field(description="Folder with general documents, in any of the formats; field `text` (or messages for sft).")
    share: Float = Field(default=0.1, gt=0, lt=1, description="Share of all training tokens that are general data.")


class GeneralSettings(Settings):
    """General documents that are never trained on; forgetting is measured on them."""

    path: str = Field(
        description="Folder with general documents, in any of the formats; field `text` (or messages for sft). It may be the folder of "
        "snapshot.replay."
    )
    max_tokens: int = Field(
        default=20_000, ge=100, le=100_000_000, description="Number of tokens that are scored before training and at each validation."
    )


class SnapshotSettings(Settings):
    """How the examples are split and frozen."""

    test_share: Float = Field(default=0.15, gt=0, lt=1, description="Share of groups held out for the test set.")
    validation_share: Float = Field(default=0.1, gt=0, lt=1, description="Share of groups held out for validation.")
    max_heldout_rows_per_group: int = Field(
        default=10,
        ge=1,
        description="Maximum number of test rows, and of validation rows, of one group: giant groups break confidence intervals.",
    )
    near_duplicate_similarity: Float = Field(
        default=0.8, gt=0, le=1, description="Minimum Jaccard similarity of word shingles at which two texts count as near-duplicates."
    )
    screen: list[str] = Field(
        default_factory=list,
        description="Files or folders with external evaluation sets; training rows that overlap with one are excluded and counted.",
    )
    screen_words: int = Field(
        default=13, ge=5, le=50, description="Number of consecutive words shared with an external evaluation set that counts as overlap."
    )
    replay: ReplaySettings | None = Field(default=None, description="General data for the tasks sft and language_modeling. Default: none.")
    general: GeneralSettings | None = Field(
        default=None,
        description="General documents on which forgetting is measured; they are held out from replay. Default: none.",
    )
    max_train_rows: int | None = Field(
        default=None, ge=1, description="Maximum number of training rows, drawn by hash; use it to fit a time budget. Default: all rows."
    )
    max_validation_rows: int | None = Field(default=2_000, ge=1, description="Maximum number of validation rows, drawn by hash.")
    min_train_rows: int = Field(default=100, ge=1, description="With fewer training rows, training is refused.")
    recommended_train_rows: int = Field(
        default=10_000, ge=1, description="With fewer training rows, a check warns: full fine-tuning usually needs tens of thousands."
    )
    min_rows_per_label: int = Field(
        default=5, ge=1, description="A label with fewer rows makes the snapshot fail: it can be neither learned nor measured."
    )
    max_share_difference: Float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Total variation distance between the label or domain shares of training and production above which a check warns.",
    )


class PlanningSettings(Settings):
    """What the fine-tuning may cost, and the gain that it must promise."""

    max_hours: Float = Field(default=24.0, gt=0, description="Maximum training time in hours; a longer plan blocks training.")
    max_usd: Float | None = Field(default=None, gt=0, description="Maximum training cost in US dollars. Default: no limit.")
    hourly_usd: Float = Field(default=0.0, ge=0, description="Price of the training machine in US dollars an hour.")
    max_memory_gib: Float | None = Field(
        default=None, gt=0, description="Maximum memory of a training process in GiB. Default: the memory of the device."
    )
    pilot_share: Float = Field(
        default=0.25, gt=0, le=1, description="Share of the planned training rows (rows times epochs) that the pilot may read."
    )
    min_predicted_gain: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="Minimum gain in the primary metric over the best baseline that the pilot must predict; otherwise training is refused.",
    )
    baselines: list[BaselineName] | None = Field(
        default=None,
        min_length=1,
        description="Registered baselines that the model must beat. Default: the task's own, listed in its documentation.",
    )


GuardAction = Annotated[Literal["off", "warn", "roll_back", "stop"], _YamlOff()]
_ACTION = "`off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate) or `stop` (the run fails)."


_WarnOrStop = Annotated[Literal["off", "warn", "stop"], _YamlOff()]


class GuardSettings(Settings):
    """Base of each guard's settings, also of those in other packages: the action that follows, and the guard's own thresholds."""

    action: GuardAction = Field(default="warn", description=f"What to do: {_ACTION}")


class NonFiniteGuard(GuardSettings):
    """A loss or gradient that is not a finite number."""

    action: GuardAction = Field(default="roll_back", description=f"What to do: {_ACTION}")


class LossSpikeGuard(GuardSettings):
    """A training loss far above the recent ones, for several steps in a row."""

    action: GuardAction = Field(default="roll_back", description=f"What to do: {_ACTION}")
    window: int = Field(default=50, ge=10, le=10_000, description="Number of recent healthy steps that a step is compared with.")
    deviations: Float = Field(
        default=8.0,
        gt=0,
        description="A step is a spike if its loss is this many robust standard deviations (1.4826 MAD) above the median.",
    )
    steps: int = Field(default=3, ge=1, description="Number of consecutive spikes; a single one is only a hard batch.")


class ExplodingGradientGuard(GuardSettings):
    """Gradients far beyond what clipping is meant for, for several steps in a row."""

    window: int = Field(default=50, ge=10, le=10_000, description="Number of recent healthy steps that a step is compared with.")
    factor: Float = Field(
        default=100.0, gt=1, description="A norm is exploded if it exceeds the recent median (at least max_grad_norm) by this factor."
    )
    steps: int = Field(default=3, ge=1, description="Number of consecutive steps that must exceed it.")


class DeadGradientGuard(GuardSettings):
    """Gradients that have vanished while there is still a loss to lower."""

    action: GuardAction = Field(default="stop", description=f"What to do: {_ACTION}")
    below: Float = Field(default=1e-7, gt=0, description="A gradient norm below this counts as dead.")
    steps: int = Field(default=20, ge=1, description="Number of consecutive steps that must be dead.")


class NoProgressGuard(GuardSettings):
    """A loss that has not fallen after a share of the steps, looked at once."""

    action: GuardAction = Field(default="stop", description=f"What to do: {_ACTION}")
    share: Float = Field(default=0.5, gt=0, lt=1, description="Share of the steps after which the loss must have fallen.")
    min_steps: int = Field(
        default=100, ge=8, description="If fewer steps were taken by then, the rule does not apply: they are too few to judge."
    )
    min_fall: Float = Field(
        default=0.0, ge=0, lt=1, description="Minimum relative fall of the mean loss from the first quarter of these steps to the last."
    )


class OverfittingGuard(GuardSettings):
    """A validation loss that stays above its best."""

    action: GuardAction = Field(
        default="warn",
        description="What to do: `off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate; after the last roll-back it "
        "is `stop`), or `stop`: training ends normally at this step, with the model that keep_best selects.",
    )
    factor: Float = Field(
        default=1.1, gt=1, description="A validation loss counts as overfitted if it exceeds the best one by this factor."
    )
    looks: int = Field(default=2, ge=1, description="Number of consecutive validations that must exceed it.")


class IdleGuard(GuardSettings):
    """An accelerator that waits for data; never on a CPU."""

    # Settings are frozen, so that the narrower type is safe.
    action: _WarnOrStop = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower
        default="warn",
        description="What to do: `off`, `warn` or `stop` (the run fails). A lower learning rate would not help, so there is no "
        "`roll_back`.",
    )
    share: Float = Field(default=0.3, gt=0, lt=1, description="Share of the time spent waiting for data that counts as idle.")
    steps: int = Field(default=50, ge=1, description="Number of consecutive steps that must be idle.")


class GuardsSettings(Settings):
    """Rules that watch a training run, each with its thresholds and its action."""

    non_finite: NonFiniteGuard = Field(default=NonFiniteGuard(), description="A loss or gradient that is nan or infinite.")
    loss_spike: LossSpikeGuard = Field(default=LossSpikeGuard(), description="A training loss far above the recent ones.")
    exploding_gradient: ExplodingGradientGuard = Field(
        default=ExplodingGradientGuard(), description="Gradients far beyond what is clipped."
    )
    dead_gradient: DeadGradientGuard = Field(default=DeadGradientGuard(), description="Gradients that have vanished.")
    no_progress: NoProgressGuard = Field(default=NoProgressGuard(), description="A loss that has not fallen.")
    overfitting: OverfittingGuard = Field(default=OverfittingGuard(), description="A validation loss that has risen above its best.")
    idle: IdleGuard = Field(default=IdleGuard(), description="An accelerator that waits for data.")
    more: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Guards of other packages by their registered names, each with its `action` and its own settings."
    )
    rate_factor: Float = Field(default=0.5, gt=0, lt=1, description="Factor on the learning rate after each roll-back.")
    max_roll_backs: int = Field(
        default=2, ge=0, le=100, description="Maximum number of roll-backs of a run; instead of one more, the run stops."
    )


#: Settings of training that work on whole weights, or on a whole second model: not with `sharding`.
OF_WHOLE_WEIGHTS = ("l2_sp", "ewc", "unfreeze_share", "wise_ft", "distillation")
#: Ending of the optimizers that step in the backward pass; `lomo` does so by nature.
IN_BACKWARD = "_in_backward"
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "adamw_in_backward", "adafactor_in_backward", "lomo"]


_Alpha = Annotated[float, _YamlNumber(), Field(gt=0, le=1)]


class DistillationSettings(Settings):
    """Holds a model to what the frozen base model makes of a text."""

    weight: Float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the base model in the loss of a taught token (classification: of a row); 1 = the base model alone, which "
        "suits replay.",
    )
    temperature: Float = Field(
        default=1.0, gt=0, le=100, description="Softmax temperature of both distributions; a higher one gives unlikely tokens more weight."
    )
    tokens: Literal["replay", "task", "all"] | None = Field(
        default=None,
        description="Trained tokens that the base model teaches: those of replayed documents, those of the task, or all. Default: those "
        "of replayed documents if there are any, else all. Not for classification, where every row is taught.",
    )


class TrainingSettings(Settings):
    """The full fine-tuning itself: every weight is trained."""

    epochs: Float = Field(default=3.0, gt=0, le=1_000, description="Passes over the training rows.")
    batch_size: int = Field(default=32, ge=1, description="Rows per optimizer step (the effective batch size, over all processes).")
    micro_batch_size: int = Field(default=16, ge=1, description="Rows per forward pass; fewer take less memory and more accumulation.")
    learning_rate: Float = Field(default=5e-5, gt=0, lt=1, description="Peak learning rate.")
    warmup_share: Float = Field(default=0.06, ge=0, lt=1, description="Share of the steps during which the learning rate is warmed up.")
    weight_decay: Float = Field(default=0.01, ge=0, lt=1, description="Decoupled weight decay.")
    max_grad_norm: Float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    max_grad_value: Float | None = Field(
        default=None,
        gt=0,
        description="Each element of a gradient is clipped to this value, instead of clipping the norm. Default: the norm is clipped.",
    )
    optimizer: Optimizer = Field(
        default="adamw",
        description="All but adamw take less memory. `..._in_backward` and lomo (gradient descent, needs about 1,000 times the rate) "
        "update weights in the backward pass, without gradient accumulation. adamw_8bit needs bitsandbytes.",
    )
    weights: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Number format of weights, gradients and moments; bf16 halves the memory and rounds stochastically."
    )
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = Field(default="linear", description="Learning-rate schedule.")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto",
        description="`auto`: bf16 where the GPU has it, fp16 on older GPUs, fp32 on a CPU. `tf32`: fp32 whose matrix multiplications "
        "round their factors to 10 bits of mantissa (NVIDIA Ampere or newer).",
    )
    attention_dropout: Float | None = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout of attention weights; 0 lets fused attention kernels run (1.8 times the tokens a second, measured on a CPU). "
        "`null`: the model's own.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more compute."
    )
    sharding: Literal["none", "fsdp2", "fsdp2_offload"] = Field(
        default="none",
        description="What each process holds: `none` = the whole model (DDP); `fsdp2` = a part of weights, gradients and moments; "
        "`fsdp2_offload` = that part in the host's memory, and the current layer on the GPU.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the model below its head with torch.compile: it takes minutes before the first step, and makes steps faster.",
    )
    liger: Annotated[Literal["auto", "off"], _YamlOff()] = Field(
        default="auto",
        description="`auto`: norms, rotary positions and gated MLPs by liger-kernel's Triton kernels, where that is installed, there is "
        "a GPU, and it supports the model. The checkpoint records it (`kernels`).",
    )
    balance_labels: bool = Field(default=False, description="Weight the loss by inverse label frequency (only with one label per row).")
    checkpoint_every_steps: int = Field(default=100, ge=1, description="Optimizer steps between two checkpoints.")
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        description="Number of newest checkpoints kept while training; the best one by validation loss is kept in addition.",
    )
    keep_best: bool = Field(
        default=False,
        description="The final model is the checkpoint with the lowest validation loss. Default: the last one, which the schedule has "
        "annealed.",
    )
    freeze: Literal["none", "embeddings"] = Field(default="none", description="Weights that are not trained. Default: every weight is.")
    freeze_layers: int = Field(default=0, ge=0, description="Lowest transformer layers that are not trained, embeddings included when any.")
    layer_decay: Float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Factor on the learning rate from each layer to the one below it; 1 = one rate, 0.9 = lower layers change less.",
    )
    l2_sp: Float = Field(default=0.0, ge=0, description="Pull of the weights towards the pretrained ones (L2-SP), 0.01 is usual; 0 = none.")
    ewc: Float = Field(
        default=0.0,
        ge=0,
        description="Pull of each weight towards the pretrained one, scaled by its importance for general text (EWC); the mean "
        "importance is 1, so the value compares with l2_sp. Needs snapshot.replay or snapshot.general. 0 = none.",
    )
    unfreeze_share: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the steps after which one more layer is trained, top layer first; 0 = all layers from the start.",
    )
    wise_ft: list[_Alpha] = Field(
        default_factory=list,
        max_length=20,
        description="Interpolations between the base model's weights (0) and the fine-tuned ones (1) that are tried after training, such "
        "as [0.5, 0.7, 1]; the best validation loss within max_general_rise decides. A new head stays as it was trained. Default: the "
        "fine-tuned weights.",
    )
    distillation: DistillationSettings | None = Field(
        default=None,
        description="Distil from the frozen base model, so that the model forgets less; costs one more forward pass of what is taught.",
    )
    retrain_from: Literal["base", "champion"] = Field(
        default="base",
        description="Weights that training begins with: those of the base model, or those of the champion, if there is one with the same "
        "base model, labels and tokenizer. The snapshot still has the old rows, so they are trained on again.",
    )
    max_general_rise: Float | None = Field(
        default=None,
        gt=0,
        description="Forgetting budget: maximum rise of the loss on snapshot.general since the start of training, in nats per token "
        "(classification: distance of its texts' representations from the base model's, 1 - cosine). Beyond it training ends early, and "
        "the result is a checkpoint within the budget. Default: no limit.",
    )
    guards: GuardsSettings = Field(default=GuardsSettings(), description="Rules that watch a training run, and what to do when one fires.")
    track: list[Literal["tensorboard", "mlflow"]] = Field(
        default=["tensorboard"],
        description="Where step metrics go in addition to metrics.jsonl: `tensorboard` event files, `mlflow` (server from "
        "MLFLOW_TRACKING_URI).",
    )
    retry_epoch: int = Field(
        default=0, ge=0, description="Raise it to train once more on unchanged data; it is part of the key and of the seed."
    )

    @property
    def steps_in_backward(self) -> bool:
        """Whether each weight is updated as soon as its gradient is there."""
        return self.optimizer == "lomo" or self.optimizer.endswith(IN_BACKWARD)

    @property
    def clips_in_two_passes(self) -> bool:
        """Whether the gradients' norm takes a pass of its own; Adafactor bounds its updates itself."""
        return self.steps_in_backward and self.max_grad_value is None and not self.optimizer.startswith("adafactor")


class EvaluationSettings(Settings):
    """Which metric decides, and how its confidence intervals are computed."""

    primary_metric: MetricName | None = Field(
        default=None,
        description="The metric that decides, one of the task's own. Default: macro_f1; for token_classification micro_f1 of exact spans; for sft and "
        "language_modeling token_probability, the geometric mean of the probabilities of the trained tokens (1 / perplexity).",
    )
    metrics: list[MetricName] = Field(
        default_factory=list,
        description="Further registered metrics that the report shows beside the task's own, each with its interval.",
    )
    confidence: Float = Field(default=0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    resamples: int = Field(default=1_000, ge=100, le=100_000, description="Number of bootstrap resamples; whole groups are drawn.")
    calibration_bins: int = Field(default=10, ge=2, le=100, description="Number of bins of the reliability diagram.")


class ReleaseSettings(Settings):
    """What a candidate must show to become champion."""

    min_gain_over_baselines: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="The lower end of the confidence interval of the gain over the best baseline must exceed this.",
    )
    min_gain_over_champion: Float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="The estimated gain over the champion must exceed this, and its interval must not be entirely negative.",
    )
    min_score: Float = Field(default=0.0, ge=0, le=1, description="The primary metric must be at least this.")
    max_calibration_error: Float | None = Field(
        default=None, gt=0, le=1, description="Maximum expected calibration error. Default: no gate."
    )


class MonitoringSettings(Settings):
    """How production documents are compared with the data that the model was trained on."""

    path: str | None = Field(default=None, description="Folder with production documents. Default: no monitoring assets for this use case.")
    min_window_rows: int = Field(default=100, ge=20, description="A window with fewer rows gives `insufficient data`.")
    max_window_rows: int = Field(default=1_000, ge=20, description="Maximum number of rows of a window that are compared, drawn by hash.")
    reference_rows: int = Field(default=1_000, ge=50, description="Number of held-out rows of the snapshot that a window is compared with.")
    false_alarm_rate: Float = Field(
        default=0.05, gt=0, lt=0.5, description="Share of unchanged windows that may raise a false alarm, over all tests together."
    )
    permutations: int = Field(
        default=1_000,
        ge=100,
        le=10_000,
        description="Minimum number of permutations of the embedding test; a small false_alarm_rate needs more.",
    )


class RetrainingSettings(Settings):
    """When to train again, and when not to."""

    min_new_examples: int = Field(
        default=1_000, ge=1, description="Number of new valid examples since the last snapshot that calls for a retrain."
    )
    drift_windows: int = Field(default=2, ge=1, description="Number of consecutive drifted windows that calls for a retrain.")
    min_new_examples_on_drift: int = Field(
        default=100, ge=0, description="With fewer new labelled examples, drift or a lower score asks for labels instead of a retrain."
    )
    max_score_drop: Float = Field(
        default=0.03, gt=0, le=1, description="Drop of the champion's primary metric on newer test rows that calls for a retrain."
    )
    max_age_days: Float = Field(default=180.0, gt=0, description="Age of the champion at which the schedule retrains.")
    cooldown_hours: Float = Field(default=24.0, ge=0, description="Minimum time between two automatic retrains.")
    max_hours_per_month: Float = Field(default=100.0, gt=0, description="Maximum training hours of automatic retrains in 30 days.")
    schedule: str = Field(default="0 3 * * 0", description="Cron of the periodic retraining decision.")
    evaluation_schedule: str = Field(default="0 4 * * *", description="Cron of the periodic evaluation on the newest labelled rows.")


class LauncherSettings(Settings):
    """Where heavy work runs."""

    kind: str = Field(
        default="local",
        description="Where workloads run: `local` = supervised processes on this machine, or the name of a launcher that a package adds.",
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="Number of training processes (one per GPU); torchrun starts them if there is more than one."
    )
    grace_seconds: Float = Field(
        default=30.0,
        ge=0,
        description="Time that a cancelled workload has to finish its optimizer step and write its checkpoint before it is killed; the "
        "plan says where it is too short.",
    )
    spot_notice: Literal["none", "aws"] = Field(
        default="none",
        description="Where training looks for the interruption notice of a spot instance, on which it writes a checkpoint: `aws` = EC2's "
        "instance metadata. Kubernetes and ECS send SIGTERM, which training always handles.",
    )
    spot_poll_seconds: Float = Field(
        default=5.0, gt=0, le=30, description="Time between two looks for a spot notice, which comes two minutes before the interruption."
    )


class UseCaseSettings(Settings):
    """One use case: documents in, a fully fine-tuned model out."""

    name: str | None = Field(
        default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]*$", description="Name of the use case. Default: the folder's name."
    )
    base_model: str = Field(
        description="Folder of the pretrained model (config.json, safetensors, tokenizer.json), `package:NAME/FOLDER` inside an "
        "installed Python package, or `ORG/NAME@COMMIT` in the cache of the Hugging Face hub."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Whether the Python files in the base model's folder may run, with all the rights of the runs. Read them first: they "
        "are part of the model's revision, and a changed file counts as another model. Needed if transformers does not support the "
        "architecture.",
    )
    owners: list[str] = Field(default_factory=list, description="E-mail addresses or `team:NAME`, shown in the UI.")
    seed: int = Field(default=17, ge=0, le=2**31 - 1, description="Seed of everything random.")
    store: str | None = Field(
        default=None,
        description="Where artifacts are stored: a folder or s3://bucket/prefix. Default: $FULLFT_STORE, else `store` in Dagster's home.",
    )
    documents: DocumentsSettings
    examples: ExamplesSettings
    chunks: ChunksSettings = ChunksSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    planning: PlanningSettings = PlanningSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    release: ReleaseSettings = ReleaseSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    launcher: LauncherSettings = LauncherSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        examples, chunks = data.get("examples"), data.get("chunks", {})
        task = examples.get("task") if isinstance(examples, Mapping) else getattr(examples, "task", None)
        defaults = TASKS.get(task).chunk_defaults if isinstance(task, str) and task in TASKS else {}
        if not defaults or not isinstance(chunks, Mapping):
            return data
        return {**data, "chunks": {**defaults, **chunks}}

    @property
    def primary_metric(self) -> str:
        """Name of the metric that decides: the one asked for, or the task's first."""
        return self.evaluation.primary_metric or task_of(self.examples).metrics[0]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the baselines: those asked for, or the task's own."""
        return tuple(self.planning.baselines or task_of(self.examples).baselines)

    @model_serializer(mode="wrap")
    def _as_keys_have_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Keys are made of it: a default, and the same metric or baselines asked for, are one decision.
        found = handler(self)
        if "primary_metric" in found.get("evaluation", {}):
            found["evaluation"]["primary_metric"] = self.primary_metric
        if "baselines" in found.get("planning", {}):
            found["planning"]["baselines"] = list(self.baselines)
        # It came later: at its default it changes nothing, and stays out of keys.
        if not self.trust_remote_code:
            found.pop("trust_remote_code", None)
        return found

    @model_validator(mode="after")
    def _sections_fit_together(self) -> UseCaseSettings:
        if self.store is not None and "://" in self.store and not self.store.startswith("s3://"):
            raise ValueError("store must be a folder or s3://bucket/prefix")
        if self.snapshot.test_share + self.snapshot.validation_share >= 0.9:
            raise ValueError("snapshot.test_share + snapshot.validation_share leave less than 10% to train on")
        if self.chunks.stride >= self.chunks.max_tokens // 2:
            raise ValueError("chunks.stride must be less than half of chunks.max_tokens")
        if self.training.micro_batch_size > self.training.batch_size:
            raise ValueError("training.micro_batch_size is larger than training.batch_size")
        if self.monitoring.min_window_rows > self.monitoring.max_window_rows:
            raise ValueError("monitoring.min_window_rows is larger than monitoring.max_window_rows")
        return self
