"""The section `training`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fullft_assets.settings.base import Float, Settings, YamlNumber, YamlOff, with_fitting_default
from fullft_assets.settings.guards import GuardsSettings

#: Settings of training that work on whole weights, or on a whole second model: not with `sharding`.
OF_WHOLE_WEIGHTS = ("l2_sp", "ewc", "unfreeze_share", "wise_ft", "distillation")
#: Passes over the training rows by default, and at most where so few would be too few steps.
EPOCHS, MOST_EPOCHS = 3.0, 20.0
#: Ending of the optimizers that step in the backward pass; `lomo` does so by nature.
IN_BACKWARD = "_in_backward"
Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "adamw_in_backward", "adafactor_in_backward", "lomo"]


_Alpha = Annotated[float, YamlNumber(), Field(gt=0, le=1)]


class DistillationSettings(Settings):
    """Holds a model to what the frozen base model makes of a text."""

    weight: Float = Field(
        default=0.5,
        gt=0,
        le=1,
        description=(
            "Share of the base model in the loss of a taught token (classification: of a row); 1 = the base"
            " model alone, which suits replay."
        ),
    )
    temperature: Float = Field(
        default=1.0,
        gt=0,
        le=100,
        description=(
            "Softmax temperature of both distributions; a higher one gives unlikely tokens more weight."
        ),
    )
    tokens: Literal["replay", "task", "all"] | None = Field(
        default=None,
        description=(
            "Trained tokens that the base model teaches: those of replayed documents, those of the task, or"
            " all. Default: those of replayed documents if there are any, else all. Not for classification,"
            " where every row is taught."
        ),
    )


class TrainingSettings(Settings):
    """The full fine-tuning itself: every weight is trained."""

    epochs: Float | None = Field(
        default=None,
        gt=0,
        le=1_000,
        description=(
            "Passes over the training rows. Default: 3; of a task with labels as many more as 500 optimizer"
            " steps take, at most 20."
        ),
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        description="Rows per optimizer step (the effective batch size, over all processes).",
    )
    micro_batch_size: int = Field(
        default=16,
        ge=1,
        description=(
            "Rows per forward pass; fewer take less memory and more accumulation. Default: 16, or batch_size"
            " where that is less."
        ),
    )
    learning_rate: Float = Field(default=5e-5, gt=0, lt=1, description="Peak learning rate.")
    warmup_share: Float = Field(
        default=0.06,
        ge=0,
        lt=1,
        description="Share of the steps during which the learning rate is warmed up.",
    )
    weight_decay: Float = Field(default=0.01, ge=0, lt=1, description="Decoupled weight decay.")
    max_grad_norm: Float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    max_grad_value: Float | None = Field(
        default=None,
        gt=0,
        description=(
            "Each element of a gradient is clipped to this value, instead of clipping the norm. Default: the"
            " norm is clipped."
        ),
    )
    optimizer: Optimizer = Field(
        default="adamw",
        description=(
            "All but adamw take less memory. `..._in_backward` and lomo (gradient descent, needs about 1,000"
            " times the rate) update weights in the backward pass, without gradient accumulation. adamw_8bit"
            " needs bitsandbytes."
        ),
    )
    weights: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description=(
            "Number format of weights, gradients and moments; bf16 halves the memory and rounds"
            " stochastically."
        ),
    )
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        default="linear", description="Learning-rate schedule."
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto",
        description=(
            "`auto`: bf16 where the GPU or the CPU (AMX) has units for it, fp16 on older GPUs, fp32 on other"
            " CPUs. `tf32`: fp32 whose matrix multiplications round their factors to 10 bits of mantissa"
            " (NVIDIA Ampere or newer)."
        ),
    )
    attention_dropout: Float | None = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "Dropout of attention weights; 0 lets fused attention kernels run (1.8 times the tokens a second,"
            " measured on a CPU). `null`: the model's own."
        ),
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more compute."
    )
    sharding: Literal["none", "fsdp2", "fsdp2_offload"] = Field(
        default="none",
        description=(
            "What each process holds: `none` = the whole model (DDP); `fsdp2` = a part of weights, gradients"
            " and moments; `fsdp2_offload` = that part in the host's memory, and the current layer on the"
            " GPU."
        ),
    )
    compile: bool = Field(
        default=False,
        description=(
            "Compile the model below its head with torch.compile: it takes minutes before the first step, and"
            " makes steps faster."
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
    checkpoint_every_steps: int = Field(
        default=100, ge=1, description="Optimizer steps between two checkpoints."
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        description=(
            "Number of newest checkpoints kept while training; the best one by validation loss is kept in"
            " addition."
        ),
    )
    keep_best: bool = Field(
        default=False,
        description=(
            "The final model is the checkpoint with the lowest validation loss. Default: the last one, which"
            " the schedule has annealed."
        ),
    )
    freeze: Literal["none", "embeddings"] = Field(
        default="none", description="Weights that are not trained. Default: every weight is."
    )
    freeze_layers: int = Field(
        default=0,
        ge=0,
        description="Lowest transformer layers that are not trained, embeddings included when any.",
    )
    layer_decay: Float = Field(
        default=1.0,
        gt=0,
        le=1,
        description=(
            "Factor on the learning rate from each layer to the one below it; 1 = one rate, 0.9 = lower"
            " layers change less."
        ),
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
    unfreeze_share: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "Share of the steps after which one more layer is trained, top layer first; 0 = all layers from"
            " the start."
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
    guards: GuardsSettings = Field(
        default=GuardsSettings(),
        description="Rules that watch a training run, and what to do when one fires.",
    )
    track: list[Literal["tensorboard", "mlflow"]] = Field(
        default=["tensorboard"],
        description=(
            "Where step metrics go in addition to metrics.jsonl: `tensorboard` event files, `mlflow` (server"
            " from MLFLOW_TRACKING_URI)."
        ),
    )
    retry_epoch: int = Field(
        default=0,
        ge=0,
        description="Raise it to train once more on unchanged data; it is part of the key and of the seed.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_micro_batch_fits(cls, data: Any) -> Any:
        return with_fitting_default(data, "micro_batch_size", 16, other="batch_size")

    @property
    def num_epochs(self) -> float:
        """Passes over the training rows: those asked for, or `EPOCHS`."""
        return self.epochs or EPOCHS

    @property
    def steps_in_backward(self) -> bool:
        """Whether each weight is updated as soon as its gradient is there."""
        return self.optimizer == "lomo" or self.optimizer.endswith(IN_BACKWARD)

    @property
    def frees_as_it_goes(self) -> bool:
        """Whether neither gradients nor activations stay, so that what each of them took is to be given back
        at once.
        """
        return self.steps_in_backward and self.gradient_checkpointing

    @property
    def clips_in_two_passes(self) -> bool:
        """Whether the gradients' norm takes a pass of its own; Adafactor bounds its updates itself."""
        return (
            self.steps_in_backward
            and self.max_grad_value is None
            and not self.optimizer.startswith("adafactor")
        )
