"""The section `training`, and its settings that contradict each other."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fullft_assets.settings.base import Float, OneOf, Settings, YamlNumber, YamlOff
from fullft_assets.settings.guards import Guards
from fullft_assets.settings.optimizers import OPTIMIZERS, Optimizer, Weights

#: Passes over the training rows by default.
EPOCHS = 3.0
#: Maximum number of passes over few training rows, which three passes teach too little.
MOST_EPOCHS = 20.0
#: Most rows of a forward pass where it is not counted what fits, as on a CPU.
_MOST_ROWS = 16


_Alpha = Annotated[float, YamlNumber(), Field(gt=0, le=1)]
_Beta = Annotated[float, YamlNumber(), Field(ge=0, lt=1)]


class DistillationSettings(Settings):
    """Holds a model to what the frozen base model makes of a text.

    The base model teaches the replayed documents of a language model, or all of its documents if none is
    replayed; of a classifier every row.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "temperature": "the default of 1 holds",
        "tokens": "the base model teaches replayed documents if there are any, else all",
    }

    weight: Float = Field(
        default=0.5,
        gt=0,
        le=1,
        description=(
            "Share of the base model in the loss of a taught token (classification: of a row); 1 = the base"
            " model alone, which suits replay."
        ),
    )


class TrainingSettings(Settings):
    """The full fine-tuning itself: every weight is trained."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "attention_dropout": "attention weights are trained without dropout",
        "optimizer: adamw_8bit": "set adafactor, which takes less memory",
        "optimizer: adamw_in_backward": "set adafactor, or adafactor_in_backward for less memory",
        "optimizer: lomo": "set adafactor_in_backward, which takes little more memory",
        "track: tensorboard": "metrics.jsonl has every step, and mlflow shows them",
        "freeze": "set `freeze_layers`, which freezes the embeddings too",
        "keep_checkpoints": "the two newest checkpoints and the best one are kept",
        "layer_decay": "set `freeze_layers` or `l2_sp`, which change lower layers less",
        "max_grad_value": "set `max_grad_norm`",
        "unfreeze_share": "set `freeze_layers` or `l2_sp`, which change lower layers less",
    }

    epochs: Float | None = Field(
        default=None,
        gt=0,
        le=1_000,
        description=(
            "Passes over the training rows. Default: 3; of a task with labels as many more as read 16,000"
            " rows, at most 20."
        ),
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        description=(
            "Rows per optimizer step, over all processes. Default of sft and language_modeling: 32."
        ),
    )
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description=(
            "Rows per forward pass; fewer take less memory and more accumulation. `auto`: on a GPU as many as"
            " are counted to fit, with gradient_checkpointing where not even one fits without; on a CPU at"
            " most 16."
        ),
    )
    learning_rate: Float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description=(
            "Peak learning rate. Default: 5e-5; 1e-4 for tasks with labels on a base model at most 512 wide."
        ),
    )
    warmup_share: Float = Field(
        default=0.06,
        ge=0,
        lt=1,
        description="Share of the steps during which the learning rate is warmed up.",
    )
    weight_decay: Float = Field(default=0.01, ge=0, lt=1, description="Decoupled weight decay.")
    betas: list[_Beta] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="Decay of AdamW's two moments a step. Default: [0.9, 0.999].",
    )
    max_grad_norm: Float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    optimizer: Annotated[str, OneOf("optimizer", lambda: OPTIMIZERS.names)] = Field(
        default="adamw",
        description=(
            "`adamw`; with less memory `adafactor`, and `adafactor_in_backward`, which updates weights in the"
            " backward pass, without gradient accumulation; or one of another package."
        ),
    )
    weights: Weights = Field(
        default="fp32",
        description=(
            "Number format of weights, gradients and moments; bf16 halves the memory and rounds"
            " stochastically."
        ),
    )
    scheduler: Literal[
        "linear", "cosine", "cosine_with_min_lr", "constant_with_warmup", "warmup_stable_decay"
    ] = Field(
        default="linear",
        description=(
            "Learning-rate schedule: to 0, with `cosine_with_min_lr` to a tenth of the rate;"
            " `warmup_stable_decay` is constant until the last tenth of the steps."
        ),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description=(
            "`auto`: bf16 where the GPU or the CPU (AMX, AVX-512 BF16) has units for it, fp16 on older GPUs,"
            " fp32 on other CPUs."
        ),
    )
    gradient_checkpointing: bool | Literal["selective"] = Field(
        default=False,
        description=(
            "Recompute activations in the backward pass: less memory, more compute. `selective` keeps the"
            " results of matrix products and of attention, and recomputes what is between them."
        ),
    )
    sharding: Literal["none", "fsdp2", "fsdp2_by_host", "fsdp2_offload"] = Field(
        default="none",
        description=(
            "What each process holds: `none` = the whole model (DDP); `fsdp2` = a part of weights, gradients"
            " and moments; `fsdp2_by_host` = the same, where each host has all parts; `fsdp2_offload` = that"
            " part in the host's memory, and the current layer on the GPU."
        ),
    )
    compile: bool = Field(
        default=False,
        description=(
            "Compile each layer with torch.compile: it takes a minute before the first step, and makes steps"
            " faster."
        ),
    )
    liger: Annotated[Literal["auto", "off"], YamlOff()] = Field(
        default="auto",
        description=(
            "`auto`: norms, rotary positions and gated MLPs by liger-kernel's Triton kernels, where that is"
            " installed, there is a GPU, and it supports the model. The checkpoint records it (`kernels`)."
        ),
    )
    balance_labels: bool = Field(
        default=False, description="Weight the loss by inverse label frequency (only with one label per row)."
    )
    checkpoint_every_steps: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Optimizer steps between two checkpoints. Default: a tenth of all; and one every ten minutes."
        ),
    )
    keep_best: bool = Field(
        default=False,
        description=(
            "The final model is the checkpoint with the lowest validation loss. Default: the last one, which"
            " the schedule has annealed."
        ),
    )
    freeze_layers: int = Field(
        default=0,
        ge=0,
        description="Lowest transformer layers that are not trained, embeddings included. Default: none.",
    )
    l2_sp: Float = Field(
        default=0.0,
        ge=0,
        description="Pull of the weights towards the pretrained ones (L2-SP), 0.01 is usual; 0 = none.",
    )
    ewc: Float = Field(
        default=0.0,
        ge=0,
        description=(
            "Pull of each weight towards the pretrained one, scaled by its importance for general text (EWC);"
            " the mean importance is 1, so the value compares with l2_sp. Needs snapshot.replay or"
            " snapshot.general. 0 = none."
        ),
    )
    wise_ft: list[_Alpha] = Field(
        default_factory=list,
        max_length=20,
        description=(
            "Interpolations between the base model's weights (0) and the fine-tuned ones (1) that are tried"
            " after training, such as [0.5, 0.7, 1]; the best validation loss within max_general_rise"
            " decides. A new head stays as it was trained. Default: the fine-tuned weights."
        ),
    )
    distillation: DistillationSettings | None = Field(
        default=None,
        description=(
            "Distil from the frozen base model, so that the model forgets less; costs one more forward pass"
            " of what is taught."
        ),
    )
    retrain_from: Literal["base", "champion"] = Field(
        default="base",
        description=(
            "Weights that training begins with: those of the base model, or those of the champion, if there"
            " is one with the same base model, labels and tokenizer. The snapshot still has the old rows, so"
            " they are trained on again."
        ),
    )
    max_general_rise: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Forgetting budget: maximum rise of the loss on snapshot.general since the start of training, in"
            " nats per token (classification: distance of its texts' representations from the base model's, 1"
            " - cosine). Beyond it training ends early, and the result is a checkpoint within the budget."
            " Default: no limit."
        ),
    )
    guards: Guards = Field(
        default_factory=dict,
        description=(
            "What to do when a rule that watches the run fires, by the rule's name: `off`, `warn`,"
            " `roll_back` (to the last good checkpoint, with half the rate, twice a run at most) or `stop`"
            " (the run fails; overfitting: it ends there). Defaults: non_finite and loss_spike roll_back, the"
            " others warn. A rule of another package may have settings of its own beside its `action`."
        ),
    )
    track: list[Literal["mlflow"]] = Field(
        default_factory=list,
        description=(
            "Where step metrics go in addition to metrics.jsonl: `mlflow` (server from MLFLOW_TRACKING_URI)."
        ),
    )
    retry_epoch: int = Field(
        default=0,
        ge=0,
        description="Raise it to train once more on unchanged data; it is part of the key and of the seed.",
    )

    def rows_a_pass(self, processes: int = 1) -> int:
        """Return the rows of a forward pass of each process: `micro_batch_size`, or for `auto` the most that
        divide the batch, up to 16.
        """
        if self.micro_batch_size != "auto":
            return self.micro_batch_size
        if self.steps_in_backward:
            return self.batch_size
        share = max(1, self.batch_size // processes)
        return max(size for size in range(1, min(share, _MOST_ROWS) + 1) if share % size == 0)

    @property
    def num_epochs(self) -> float:
        """Passes over the training rows: `training.epochs`, or `EPOCHS` where it is not set."""
        return self.epochs or EPOCHS

    @property
    def peak_rate(self) -> float:
        """`learning_rate`, or what suits any model where it is not set."""
        return self.learning_rate or 5e-5

    @property
    def chosen_optimizer(self) -> Optimizer:
        """The optimizer that is registered under the name."""
        return OPTIMIZERS.get(self.optimizer)

    @property
    def steps_in_backward(self) -> bool:
        """Whether each weight is updated as soon as its gradient is there."""
        return self.chosen_optimizer.steps_in_backward


#: (the key below `attributes`, what is wrong with it and the fix).
Contradiction = tuple[tuple[str, str], str]


def contradictions(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    """Yield each contradiction of the optimizer, the number format of the weights and their sharding with
    other settings.
    """
    sharding = training.sharding
    is_sharded = sharding != "none"
    is_bf16 = training.weights == "bf16"
    steps_in_backward = training.steps_in_backward
    in_backward = f"{training.optimizer} steps in the backward pass"
    rules: list[tuple[bool, tuple[str, str], str]] = [
        (
            is_sharded and processes == 1,
            ("training", "sharding"),
            f"{sharding} needs more than one process; set launcher.processes to 2 or more",
        ),
        (
            is_sharded and not training.chosen_optimizer.takes_shards,
            ("training", "sharding"),
            f"{sharding} gives each process a part of each weight, which {training.optimizer} does not take;"
            " set adamw or adafactor",
        ),
        (
            training.gradient_checkpointing == "selective" and training.compile,
            ("training", "compile"),
            "hides the products that gradient_checkpointing: selective keeps; set true, or remove one of the"
            " two",
        ),
        (
            sharding == "fsdp2_offload" and training.precision == "fp16",
            ("training", "precision"),
            f"fp16 is not supported with sharding: {sharding}; use fp32, or bf16 where the GPU has it",
        ),
        (
            is_bf16 and training.precision in ("fp32", "fp16"),
            ("training", "precision"),
            f"{training.precision} contradicts weights: bf16, which are computed with as they are",
        ),
        (
            training.betas is not None and not training.chosen_optimizer.takes_betas,
            ("training", "betas"),
            f"{training.optimizer} has none; remove them, or set optimizer: adamw",
        ),
        (
            is_bf16 and not training.chosen_optimizer.takes_bf16,
            ("training", "weights"),
            f"bf16 loses small updates with {training.optimizer}, which does not round stochastically; use"
            " adafactor",
        ),
        (
            steps_in_backward and training.rows_a_pass() != training.batch_size,
            ("training", "micro_batch_size"),
            f"{in_backward} and cannot accumulate: set all {training.batch_size} rows of batch_size, or"
            " lower both",
        ),
        (
            steps_in_backward and processes > 1,
            ("launcher", "processes"),
            f"{in_backward}, before processes share gradients; set 1",
        ),
        (
            steps_in_backward and training.precision == "fp16",
            ("training", "precision"),
            f"{in_backward}, before fp16's scaling is undone; use fp32 or bf16",
        ),
        *(
            (
                steps_in_backward and bool(getattr(training, key)),
                ("training", key),
                f"keeps a copy of the weights, the memory that {training.optimizer} is there to save; remove"
                " one of the two",
            )
            for key in ("l2_sp", "ewc")
        ),
    ]
    return ((key, message) for is_broken, key, message in rules if is_broken)
