"""What a use case's YAML may say: plain pydantic, one class a stage, no Dagster.

Each field carries a description, a bound and the default that a practitioner would choose. Only
`base_model`, `documents.path` and `examples.label` have no default.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

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
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema


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
    def _with_suggestion(cls, error: dict) -> InitErrorDetails:
        message = error["msg"]
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            message = f"unknown key `{error['loc'][0]}`"
            near = difflib.get_close_matches(str(error["loc"][0]), cls.model_fields, n=1, cutoff=0.6)
            message += f"; did you mean `{near[0]}`?" if near else f"; known keys: {', '.join(cls.model_fields)}"
        # Braces in a message are template fields to pydantic: the text is passed as a value.
        custom = PydanticCustomError(error["type"], "{message}", {"message": message})
        return InitErrorDetails(type=custom, loc=error["loc"], input=error["input"])


class DocumentsSettings(Settings):
    """Where the raw documents are delivered, and how a sensor cuts them into batches."""

    path: str = Field(
        description="Folder with the delivered files, relative to the project root; or s3://bucket/prefix; or a folder saved by `datasets`."
    )
    format: Literal["auto", "ground_truth", "jsonl", "csv", "parquet", "arrow", "label_studio", "argilla", "text", "html", "pdf"] = Field(
        "auto",
        description="`auto` goes by the file's ending, and by its content for .json. A last .gz or .zst is unpacked.",
    )
    text: str | None = Field(
        None,
        description="Field that holds the text. Default: `source` in Ground Truth manifests, `text` elsewhere. "
        "A plain text, Markdown, HTML or PDF file is one document with the fields `text`, `file` and `folder`.",
    )
    id: str = Field("id", description="Field with the document's own id; a row without one is named file:row.")
    annotator: str = Field("annotator", description="Field with the annotator; several rows' or several answers' annotators are compared.")
    time: str = Field("time", description="Field with the time of the annotation.")
    encoding: str | None = Field(None, description="Encoding of the text files, such as `cp1252`. Default: detected, file by file.")
    queue: str | None = Field(
        None, pattern=r"^https?://", description="URL of an SQS queue with the bucket's S3 events. Default: the prefix is listed."
    )
    attribution: str = Field("", description="Source, licence and attribution of the documents; stands on the model card.")
    max_batch_files: int = Field(1_000, ge=1, le=100_000, description="Most files in one batch.")
    max_batch_bytes: int = Field(256 * 2**20, ge=1, description="Most bytes in one batch; a single larger file is a batch of its own.")
    max_runs_per_tick: int = Field(
        50, ge=1, le=1_000, description="Most ingest runs that one look for new files launches; the rest follow."
    )
    settle_seconds: Float = Field(
        1.0, ge=0, le=86_400, description="A file that was written to within this time may still be growing; it waits for the next look."
    )
    poll_seconds: int = Field(30, ge=1, le=86_400, description="Least seconds between two looks for new files.")


#: What an example is: a text with labels, a text with labelled spans, a conversation, or plain text.
Task = Literal["classification", "token_classification", "sft", "language_modeling"]
Metric = Literal["macro_f1", "accuracy", "micro_f1", "subset_accuracy", "token_probability", "token_accuracy"]
#: Metrics that may decide, by task; the first one is the default. All lie between 0 and 1, and higher is better.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": ("macro_f1", "accuracy"),
    # Not the accuracy of tokens: a model that finds no span is right on all that stand outside of any.
    "token_classification": ("micro_f1", "macro_f1"),
    "sft": ("token_probability", "token_accuracy"),
    "language_modeling": ("token_probability", "token_accuracy"),
}
#: Of classification with several labels a row.
MULTI_LABEL_METRICS: tuple[Metric, ...] = ("macro_f1", "micro_f1", "subset_accuracy")
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
        "warn", description="`quarantine`: the failing rows are set aside; `error`: the batch goes no further; `warn`: only told."
    )


class ExamplesSettings(Settings):
    """What makes a document a valid labelled example."""

    USUAL: ClassVar[tuple[str, ...]] = ("label",)

    task: Task = Field("classification", description="What the model learns to do.")
    label: str | None = Field(
        None,
        description="Field (Ground Truth: label attribute) that holds the label, the labels or the spans; `folder` for files sorted so.",
    )
    multi_label: bool = Field(False, description="A text may have several labels (a list in the field `label`).")
    group: str | None = Field(
        None,
        description="Field that ties related rows (patient, contract family, author). Rows of one group never stand on both sides of a split.",
    )
    domain: str | None = Field(
        None, description="Field with a row's domain (department, kind of document); its shares are compared with production's."
    )
    labels: list[str] | None = Field(
        None, min_length=2, description="The known labels; any other is quarantined. Default: every label that occurs."
    )
    min_characters: int = Field(1, ge=1, description="A shorter text is quarantined.")
    max_characters: int = Field(1_000_000, ge=1, description="A longer text is quarantined.")
    languages: list[str] | None = Field(
        None, min_length=1, description="Languages (ISO 639-1, such as `en`) that texts may be in. Default: languages are not identified."
    )
    max_damage_share: Float = Field(
        0.05, ge=0, le=1, description="Share of damaged characters (replacement, control, mis-decoded) above which a text is quarantined."
    )
    pii: Annotated[Literal["off", "flag", "mask", "quarantine"], _YamlOff()] = Field(
        "off",
        description="Personal data in texts (e-mail, telephone, payment card, IBAN, social security number, IP address): "
        "`flag` counts it, `mask` replaces it, `quarantine` sets the row aside.",
    )
    min_confidence: Float = Field(
        0.0,
        ge=0,
        le=1,
        description="A lower annotation confidence is quarantined. Ground Truth writes 0 for a single worker.",
    )
    human_annotated_only: bool = Field(False, description="Quarantine what a machine annotated (Ground Truth: `human-annotated: no`).")
    min_label_share: Float = Field(0.01, ge=0, le=1, description="A rarer label in a batch of 100 rows or more raises a warning.")
    min_agreement: Float = Field(0.6, ge=-1, le=1, description="Cohen's or Fleiss' kappa below which annotators are said to disagree.")
    min_batch_rows: int = Field(1, ge=1, description="A batch with fewer valid rows raises a warning.")
    max_quarantined_share: Float = Field(
        0.5, ge=0, le=1, description="A batch with a larger share of quarantined rows is held back (blocking check)."
    )
    severities: dict[str, Severity] = Field(
        default_factory=dict, description=f"Severity of a rule by its name, in place of its default. Rules: {', '.join(RULES)}."
    )
    expectations: list[Expectation] = Field(default_factory=list, description="Rules of your own, by their names in Great Expectations.")

    @property
    def has_one_label(self) -> bool:
        """The task is classification, with one label a row."""
        return self.task == "classification" and not self.multi_label

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics that may decide; the first one is the default."""
        return MULTI_LABEL_METRICS if self.task == "classification" and self.multi_label else METRICS[self.task]


class ChunksSettings(Settings):
    """How a text becomes the windows that the model reads."""

    max_tokens: int = Field(
        256, ge=8, le=1_048_576, description="Longest window in tokens, special tokens included; at most what the model takes."
    )
    stride: int = Field(
        32,
        ge=0,
        description="Tokens that two neighbouring windows of a long text share, so that context is kept. Default for language_modeling: "
        "0, each token is trained once.",
    )
    max_windows: int | None = Field(
        None, ge=1, description="Windows kept of one text; the tokens cut off are counted. Default: all, nothing is cut."
    )
    boundaries: Literal["any", "sentence", "paragraph"] = Field(
        "sentence",
        description="Where a window of a long text prefers to end: it gives up at most a quarter of its length for that. Default for "
        "language_modeling: any, so that rows are full.",
    )
    train_on: Literal["assistant", "last_turn", "everything"] = Field(
        "assistant", description="Which tokens of a conversation are trained: all assistant turns, the last one, or every token."
    )
    added_tokens: list[str] = Field(
        default_factory=list, description="Domain terms added to the tokenizer as tokens of their own; the audit proposes some."
    )
    terms: list[str] = Field(default_factory=list, description="Domain terms whose splitting is audited. Default: mined from the corpus.")
    general_words: str | None = Field(
        None,
        min_length=1,
        description="General language that mined terms are markedly rarer in: a language that has a list (`en`, `de`; ISO 639-1), the path of "
        "a list of your own (UTF-8; a word a line, or a word, a tab and its count), or `vocabulary`: the tokenizer's alone. Default: the lists "
        "of examples.languages, else of the language that the commonest words are in; where there is none, the vocabulary.",
    )
    max_term_pieces: Float = Field(3.0, ge=1, description="Mean number of pieces a domain term may be split into before the audit warns.")
    max_unknown_share: Float = Field(0.001, ge=0, le=1, description="Share of unknown tokens above which the audit warns.")
    max_byte_fallback_share: Float = Field(0.01, ge=0, le=1, description="Share of byte-fallback tokens above which the audit warns.")


class ReplaySettings(Settings):
    """General data mixed into training, so that the model keeps what it knew."""

    path: str = Field(description="Folder with general documents, in any of the formats; field `text` (or messages for sft).")
    share: Float = Field(0.1, gt=0, lt=1, description="Share of all training tokens that are general data.")


class GeneralSettings(Settings):
    """General documents that never train: what a model forgets is measured on them."""

    path: str = Field(
        description="Folder with general documents, in any of the formats; field `text` (or messages for sft). May be replay's."
    )
    max_tokens: int = Field(
        20_000, ge=100, le=100_000_000, description="Tokens that are measured on; scored before training and at each validation."
    )


class SnapshotSettings(Settings):
    """How the examples are split and frozen."""

    test_share: Float = Field(0.15, gt=0, lt=1, description="Share of groups held out for the test set.")
    validation_share: Float = Field(0.1, gt=0, lt=1, description="Share of groups held out for validation.")
    max_heldout_rows_per_group: int = Field(
        10, ge=1, description="Most test (and validation) rows of one group: giant groups break confidence intervals."
    )
    near_duplicate_similarity: Float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of word shingles from which two texts count as near-duplicates."
    )
    screen: list[str] = Field(
        default_factory=list,
        description="Files or folders with external evaluation sets; training rows that overlap one are left out and counted.",
    )
    screen_words: int = Field(13, ge=5, le=50, description="Words in a row shared with an external evaluation set that count as overlap.")
    replay: ReplaySettings | None = Field(None, description="General data for the tasks sft and language_modeling. Default: none.")
    general: GeneralSettings | None = Field(
        None,
        description="General documents on which is measured what training makes the model forget; held out from replay. Default: none.",
    )
    max_train_rows: int | None = Field(
        None, ge=1, description="Training rows kept, drawn by hash; use it to fit a time budget. Default: all."
    )
    max_validation_rows: int | None = Field(2_000, ge=1, description="Validation rows kept, drawn by hash.")
    min_train_rows: int = Field(100, ge=1, description="Fewer training rows block training.")
    recommended_train_rows: int = Field(
        10_000, ge=1, description="Fewer training rows raise a warning: full fine-tuning wants tens of thousands."
    )
    min_rows_per_label: int = Field(
        5, ge=1, description="A label with fewer rows stops the snapshot: it can be neither learned nor measured."
    )
    max_share_difference: Float = Field(
        0.2, gt=0, le=1, description="Total variation distance of label or domain shares from production's above which a check warns."
    )


class PlanningSettings(Settings):
    """What the fine-tuning may cost, and what it must promise."""

    max_hours: Float = Field(24.0, gt=0, description="Longest training time in hours; a longer plan blocks training.")
    max_usd: Float | None = Field(None, gt=0, description="Dearest training in US dollars. Default: no limit.")
    hourly_usd: Float = Field(0.0, ge=0, description="Price of the training machine in US dollars an hour.")
    max_memory_gib: Float | None = Field(
        None, gt=0, description="Memory that a process of training may take, in GiB. Default: what the device has."
    )
    pilot_share: Float = Field(0.25, gt=0, le=1, description="Share of the planned training time that the pilot may use.")
    min_predicted_gain: Float = Field(
        0.0,
        ge=-1,
        le=1,
        description="Gain in the primary metric over the best cheaper baseline that the pilot must predict, or training is refused.",
    )


GuardAction = Annotated[Literal["off", "warn", "roll_back", "stop"], _YamlOff()]
_ACTION = "`off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate) or `stop` (the run fails)."


class NonFiniteGuard(Settings):
    """A loss or gradient that is no finite number."""

    action: GuardAction = Field("roll_back", description=f"What follows: {_ACTION}")


class LossSpikeGuard(Settings):
    """A training loss far above the recent ones, for several steps in a row."""

    action: GuardAction = Field("roll_back", description=f"What follows: {_ACTION}")
    window: int = Field(50, ge=10, le=10_000, description="Recent healthy steps that a step is compared with.")
    deviations: Float = Field(8.0, gt=0, description="Robust standard deviations (1.4826 MAD) above the median that make a spike.")
    steps: int = Field(3, ge=1, description="Steps in a row that must spike; one alone is a hard batch.")


class ExplodingGradientGuard(Settings):
    """Gradients far beyond what clipping is meant for, for several steps in a row."""

    action: GuardAction = Field("warn", description=f"What follows: {_ACTION}")
    window: int = Field(50, ge=10, le=10_000, description="Recent healthy steps that a step is compared with.")
    factor: Float = Field(100.0, gt=1, description="Times the recent median norm (at least max_grad_norm) that count as exploded.")
    steps: int = Field(3, ge=1, description="Steps in a row that must exceed it.")


class DeadGradientGuard(Settings):
    """Gradients that have vanished while there is still a loss to lower."""

    action: GuardAction = Field("stop", description=f"What follows: {_ACTION}")
    below: Float = Field(1e-7, gt=0, description="A gradient norm below this is dead.")
    steps: int = Field(20, ge=1, description="Steps in a row that must be dead.")


class NoProgressGuard(Settings):
    """A loss that has not fallen after a share of the steps, looked at once."""

    action: GuardAction = Field("stop", description=f"What follows: {_ACTION}")
    share: Float = Field(0.5, gt=0, lt=1, description="Share of the steps after which the loss must have fallen.")
    min_steps: int = Field(
        100, ge=8, description="With fewer steps by then nothing is said: they tell more of their rows than of the model."
    )
    min_fall: Float = Field(
        0.0, ge=0, lt=1, description="Share of the first quarter's mean loss that the last quarter's must lie below it."
    )


class OverfittingGuard(Settings):
    """A validation loss that stays above its best."""

    action: GuardAction = Field(
        "warn",
        description="What follows: `off`, `warn`, `roll_back` (to the last good checkpoint, with a lower rate; after the last roll-back it is "
        "`stop`), or `stop`: training ends here, in good order, with the model that keep_best names.",
    )
    factor: Float = Field(1.1, gt=1, description="Times the best validation loss that count as overfitted.")
    looks: int = Field(2, ge=1, description="Validations in a row that must exceed it.")


class IdleGuard(Settings):
    """An accelerator that waits for data; never on a CPU."""

    action: Annotated[Literal["off", "warn", "stop"], _YamlOff()] = Field(
        "warn", description="What follows: `off`, `warn` or `stop` (the run fails). No lower rate would bring the rows sooner."
    )
    share: Float = Field(0.3, gt=0, lt=1, description="Share of the time spent waiting for data that counts as idle.")
    steps: int = Field(50, ge=1, description="Steps in a row that must be idle.")


class GuardsSettings(Settings):
    """What watches over a training run: each rule with its thresholds and the action that follows."""

    non_finite: NonFiniteGuard = Field(NonFiniteGuard(), description="A loss or gradient that is nan or infinite.")
    loss_spike: LossSpikeGuard = Field(LossSpikeGuard(), description="A training loss far above the recent ones.")
    exploding_gradient: ExplodingGradientGuard = Field(ExplodingGradientGuard(), description="Gradients far beyond what is clipped.")
    dead_gradient: DeadGradientGuard = Field(DeadGradientGuard(), description="Gradients that have vanished.")
    no_progress: NoProgressGuard = Field(NoProgressGuard(), description="A loss that has not fallen.")
    overfitting: OverfittingGuard = Field(OverfittingGuard(), description="A validation loss that has left its best behind.")
    idle: IdleGuard = Field(IdleGuard(), description="An accelerator that waits for data.")
    rate_factor: Float = Field(0.5, gt=0, lt=1, description="Times the learning rate after each roll-back.")
    max_roll_backs: int = Field(2, ge=0, le=100, description="Roll-backs of a run; what would be one more stops it.")


#: Settings of training that work on whole weights, or on a whole second model: not with `sharding`.
OF_WHOLE_WEIGHTS = ("l2_sp", "ewc", "unfreeze_share", "wise_ft", "distillation")
#: Ending of the optimizers that step in the backward pass; `lomo` does so by nature.
IN_BACKWARD = "_in_backward"
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "adamw_in_backward", "adafactor_in_backward", "lomo"]


_Alpha = Annotated[float, _YamlNumber(), Field(gt=0, le=1)]


class DistillationSettings(Settings):
    """Holds a model to what the frozen base model makes of a text."""

    weight: Float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the base model in the loss of a taught token (classification: of a row); 1: it alone, for replay.",
    )
    temperature: Float = Field(1.0, gt=0, le=100, description="Both distributions are divided by it; more tells more of unlikely tokens.")
    tokens: Literal["replay", "task", "all"] | None = Field(
        None,
        description="Trained tokens that the base model teaches: those of replayed documents, of the task's, or all. Default: replay's, where "
        "there are any, else all. Not for classification, whose rows are all taught.",
    )


class TrainingSettings(Settings):
    """The full fine-tuning itself: every weight is trained."""

    epochs: Float = Field(3.0, gt=0, le=1_000, description="Passes over the training rows.")
    batch_size: int = Field(32, ge=1, description="Rows an optimizer step (the effective batch, over all processes).")
    micro_batch_size: int = Field(16, ge=1, description="Rows a forward pass; smaller takes less memory and more accumulation.")
    learning_rate: Float = Field(5e-5, gt=0, lt=1, description="Peak learning rate.")
    warmup_share: Float = Field(0.06, ge=0, lt=1, description="Share of the steps that warm the learning rate up.")
    weight_decay: Float = Field(0.01, ge=0, lt=1, description="Decoupled weight decay.")
    max_grad_norm: Float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    max_grad_value: Float | None = Field(
        None, gt=0, description="Each element of a gradient is clipped to this, instead of their norm. Default: the norm is clipped."
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="Below adamw each takes less memory. `..._in_backward` and lomo (gradient descent, 1,000 times the rate) step in the "
        "backward pass, without accumulation. adamw_8bit needs bitsandbytes.",
    )
    weights: Literal["fp32", "bf16"] = Field(
        "fp32", description="Number format that weights, gradients and moments are kept in; bf16 takes half of it, rounded stochastically."
    )
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = Field("linear", description="Learning-rate schedule.")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="`auto`: bf16 where the GPU has it, fp16 on older GPUs, fp32 on a CPU. `tf32`: fp32 whose matrix multiplications round their "
        "factors to 10 bits of mantissa (NVIDIA from Ampere).",
    )
    attention_dropout: Float | None = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout of attention weights; 0 lets fused attention kernels run (1.8 times the tokens a second, measured on a CPU). `null`: the model's own.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    sharding: Literal["none", "fsdp2", "fsdp2_offload"] = Field(
        "none",
        description="What processes hold: `none` = the whole model each (DDP); `fsdp2` = a part of weights, gradients and moments each; "
        "`fsdp2_offload` = that part in the host's memory, and on the GPU the layer that is due.",
    )
    compile: bool = Field(
        False, description="Compile the model below its head with torch.compile: minutes before the first step, faster steps after."
    )
    liger: Annotated[Literal["auto", "off"], _YamlOff()] = Field(
        "auto",
        description="`auto`: norms, rotary positions and gated MLPs by liger-kernel's Triton kernels, where that is installed, there is a GPU, and it "
        "knows the model. The checkpoint says so (`kernels`).",
    )
    balance_labels: bool = Field(False, description="Weight the loss by inverse label frequency (one label a row).")
    checkpoint_every_steps: int = Field(100, ge=1, description="Optimizer steps between two checkpoints.")
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints kept while training; the best by validation loss is kept beside them."
    )
    keep_best: bool = Field(
        False,
        description="The final model is the checkpoint with the lowest validation loss. Default: the last one, which the schedule has annealed.",
    )
    freeze: Literal["none", "embeddings"] = Field("none", description="Weights that are not trained. Default: every weight is.")
    freeze_layers: int = Field(0, ge=0, description="Lowest transformer layers that are not trained, embeddings included when any.")
    layer_decay: Float = Field(
        1.0, gt=0, le=1, description="Times the learning rate of each layer below the head's; 1 = one rate, 0.9 spares the lower layers."
    )
    l2_sp: Float = Field(0.0, ge=0, description="Pull of the weights towards the pretrained ones (L2-SP), 0.01 is usual; 0 = none.")
    ewc: Float = Field(
        0.0,
        ge=0,
        description="Pull of each weight towards the pretrained one by how much it matters to general text (EWC); importance is 1 on average, "
        "so it compares with l2_sp. Needs snapshot.replay or snapshot.general. 0 = none.",
    )
    unfreeze_share: Float = Field(
        0.0, ge=0, lt=1, description="Share of the steps after which one more layer is trained, the top first; 0 = all from the start."
    )
    wise_ft: list[_Alpha] = Field(
        default_factory=list,
        max_length=20,
        description="Shares of the fine-tuned weights, the rest the base model's, that are tried after training, such as [0.5, 0.7, 1]; the "
        "best validation loss within max_general_rise decides. A new head stays as it was trained. Default: the fine-tuned weights.",
    )
    distillation: DistillationSettings | None = Field(
        None,
        description="Hold the model to the frozen base model's answers, so that it forgets less; one more forward pass of what is taught.",
    )
    retrain_from: Literal["base", "champion"] = Field(
        "base",
        description="Weights that training begins with: those of the base model, or of the champion, if there is one, of the same base "
        "model, labels and tokenizer. The snapshot holds the old rows as well: they are trained on again.",
    )
    max_general_rise: Float | None = Field(
        None,
        gt=0,
        description="Forgetting budget: most that the loss on snapshot.general may rise over the score before training, in nats a token "
        "(classification: the distance of its texts' representations from the base model's, 1 - cosine). Spent, training ends early, and "
        "the model is one within it. Default: no limit.",
    )
    guards: GuardsSettings = Field(GuardsSettings(), description="What watches over a run, and what follows when a rule is broken.")
    track: list[Literal["tensorboard", "mlflow"]] = Field(
        ["tensorboard"],
        description="Where step metrics go beside metrics.jsonl: `tensorboard` event files, `mlflow` (server from MLFLOW_TRACKING_URI).",
    )
    retry_epoch: int = Field(0, ge=0, description="Raise it to train once more on unchanged data: it enters the key and the seed.")

    @property
    def steps_in_backward(self) -> bool:
        """Whether each weight is updated as soon as its gradient is there."""
        return self.optimizer == "lomo" or self.optimizer.endswith(IN_BACKWARD)

    @property
    def clips_in_two_passes(self) -> bool:
        """Whether the gradients' norm takes a pass of its own; Adafactor bounds its updates itself."""
        return self.steps_in_backward and self.max_grad_value is None and not self.optimizer.startswith("adafactor")


class EvaluationSettings(Settings):
    """How good, and how sure."""

    primary_metric: Metric | None = Field(
        None,
        description="The metric that decides. Default: macro_f1; for token_classification micro_f1 of exact spans; for sft and "
        "language_modeling token_probability, the geometric mean of the probabilities of the trained tokens (1 / perplexity).",
    )
    confidence: Float = Field(0.95, gt=0.5, lt=1, description="Level of the confidence intervals.")
    resamples: int = Field(1_000, ge=100, le=100_000, description="Bootstrap resamples, drawn over groups.")
    calibration_bins: int = Field(10, ge=2, le=100, description="Bins of the reliability diagram.")


class ReleaseSettings(Settings):
    """What a candidate must show to become champion."""

    min_gain_over_baselines: Float = Field(
        0.0, ge=-1, le=1, description="The interval's lower end of the gain over the best cheaper baseline must exceed this."
    )
    min_gain_over_champion: Float = Field(
        0.0, ge=-1, le=1, description="The gain over the champion must exceed this (estimate), and not be significantly negative."
    )
    min_score: Float = Field(0.0, ge=0, le=1, description="The primary metric must reach this.")
    max_calibration_error: Float | None = Field(None, gt=0, le=1, description="Largest expected calibration error. Default: not a gate.")


class MonitoringSettings(Settings):
    """What production sees, compared with what the model learned on."""

    path: str | None = Field(None, description="Folder with production documents. Default: no monitoring assets for this use case.")
    min_window_rows: int = Field(100, ge=20, description="A smaller window says `insufficient data`.")
    max_window_rows: int = Field(1_000, ge=20, description="Most rows of a window that are compared, drawn by hash.")
    reference_rows: int = Field(1_000, ge=50, description="Held-out rows that stand for what the model learned on.")
    false_alarm_rate: Float = Field(
        0.05, gt=0, lt=0.5, description="Share of unchanged windows that may raise an alarm, over all tests together."
    )
    permutations: int = Field(
        1_000, ge=100, le=10_000, description="Least permutations of the embedding test; a small false_alarm_rate takes more."
    )


class RetrainingSettings(Settings):
    """When to train again, and when not to."""

    min_new_examples: int = Field(1_000, ge=1, description="New valid examples since the last snapshot that call for a retrain.")
    drift_windows: int = Field(2, ge=1, description="Drifted windows in a row that call for a retrain.")
    min_new_examples_on_drift: int = Field(
        100, ge=0, description="With fewer new labelled examples a drift asks for labels instead of a retrain."
    )
    max_score_drop: Float = Field(
        0.03, gt=0, le=1, description="Drop of the champion's primary metric on newer test rows that calls for a retrain."
    )
    max_age_days: Float = Field(180.0, gt=0, description="Age of the champion at which the schedule retrains.")
    cooldown_hours: Float = Field(24.0, ge=0, description="Least time between two automatic retrains.")
    max_hours_per_month: Float = Field(100.0, gt=0, description="Training hours that automatic retrains may spend in 30 days.")
    schedule: str = Field("0 3 * * 0", description="Cron of the periodic retraining decision.")
    evaluation_schedule: str = Field("0 4 * * *", description="Cron of the periodic evaluation on the newest labelled rows.")


class LauncherSettings(Settings):
    """Where heavy work runs."""

    kind: Literal["local"] = Field("local", description="`local`: supervised processes on this machine.")
    processes: int = Field(1, ge=1, le=64, description="Training processes (one a GPU), started by torchrun when more than one.")
    grace_seconds: Float = Field(
        30.0,
        ge=0,
        description="Time a cancelled workload has to end its optimizer step and write its checkpoint before it is killed; the plan says where "
        "that is too short.",
    )
    spot_notice: Literal["none", "aws"] = Field(
        "none",
        description="Where training looks for the notice that a spot instance is taken away, and writes a checkpoint on it: `aws` = EC2's instance "
        "metadata. Kubernetes and ECS send SIGTERM, which is always heeded.",
    )
    spot_poll_seconds: Float = Field(
        5.0, gt=0, le=30, description="Time between two looks for a spot notice, which comes two minutes ahead."
    )


class UseCaseSettings(Settings):
    """One use case: documents in, a fully fine-tuned model that is worth having out."""

    name: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_]*$", description="Name of the use case. Default: the folder's name.")
    base_model: str = Field(
        description="Folder of the pretrained model (config.json, safetensors, tokenizer.json), `package:NAME/FOLDER` inside an installed Python package, "
        "or `ORG/NAME@COMMIT` in the cache of the Hugging Face hub."
    )
    trust_remote_code: bool = Field(
        False,
        description="Whether the Python files in the base model's folder may run, with all rights of the runs. Read them first: they are part of "
        "the model's revision, and a changed file counts as another model. Needed where transformers does not know the architecture.",
    )
    owners: list[str] = Field(default_factory=list, description="E-mail addresses or `team:NAME`, shown in the UI.")
    seed: int = Field(17, ge=0, le=2**31 - 1, description="Seed of everything random.")
    store: str | None = Field(None, description="Where artifacts live: a folder or s3://bucket/prefix. Default: `store` in Dagster's home.")
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
        if task != "language_modeling" or not isinstance(chunks, Mapping):
            return data
        return {**data, "chunks": {"stride": 0, "boundaries": "any", **chunks}}

    @property
    def primary_metric(self) -> Metric:
        """The metric that decides: the one asked for, or the task's own."""
        return self.evaluation.primary_metric or self.examples.metrics[0]

    @model_serializer(mode="wrap")
    def _as_keys_have_it(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Keys are made of it: a default and the same metric asked for are one decision.
        found = handler(self)
        if "primary_metric" in found.get("evaluation", {}):
            found["evaluation"]["primary_metric"] = self.primary_metric
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
