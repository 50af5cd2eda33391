"""Settings of training that do not go together, said once: for the check of a YAML, for workloads, and for the advice of a plan."""

from __future__ import annotations

from collections.abc import Iterator

from fullft_assets.settings import OF_WHOLE_WEIGHTS, TrainingSettings

#: (the key below `attributes`, what is wrong with it and the mend).
Contradiction = tuple[tuple[str, str], str]


def contradictions(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    """Yield what contradicts in the optimizer, the format of the weights and their sharding."""
    yield from of_sharding(training, processes)
    yield from _of_weights(training)
    if training.steps_in_backward:
        yield from _of_steps_in_backward(training, processes)


def of_sharding(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    """Yield what contradicts a model in parts; nothing where each process holds the whole of it."""
    name = training.sharding
    if name == "none":
        return
    if processes == 1:
        yield ("training", "sharding"), f"{name} shares the model between processes; set launcher.processes to 2 or more"
    if (training.optimizer, training.weights) != ("adamw", "fp32"):
        yield ("training", "sharding"), f"{name} goes with optimizer: adamw and weights: fp32; remove the other"
    for key in OF_WHOLE_WEIGHTS:
        if getattr(training, key):
            yield ("training", key), f"works on whole weights, which no process has under sharding: {name}; remove one of the two"
    if training.compile:
        yield ("training", "compile"), f"was not tried with sharding: {name}; remove one of the two"
    if name == "fsdp2_offload" and training.precision == "fp16":
        yield ("training", "precision"), f"fp16's scaling was not tried with sharding: {name}; give auto, bf16 or fp32"


def _of_weights(training: TrainingSettings) -> Iterator[Contradiction]:
    if training.weights == "bf16" and training.precision in ("fp32", "tf32", "fp16"):
        yield (
            ("training", "precision"),
            f"{training.precision} does not go with weights: bf16, which are computed with as they are",
        )
    if training.weights == "bf16" and training.optimizer == "adamw_8bit":
        yield ("training", "weights"), "bf16 loses small updates with adamw_8bit, which does not round stochastically; use adafactor"
    if training.unfreeze_share and (training.weights == "bf16" or training.optimizer == "adafactor"):
        yield (
            ("training", "unfreeze_share"),
            "goes with optimizer: adamw or adamw_8bit and weights: fp32, whose moments begin with each weight; remove one of the two",
        )


def _of_steps_in_backward(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    name = training.optimizer
    in_backward = f"{name} steps in the backward pass"
    if training.micro_batch_size != training.batch_size:
        yield (
            ("training", "micro_batch_size"),
            f"{in_backward} and cannot accumulate: give all {training.batch_size} rows of batch_size, or lower both",
        )
    if processes > 1:
        yield ("launcher", "processes"), f"{in_backward}, before processes share gradients; give 1"
    if training.precision == "fp16":
        yield ("training", "precision"), f"{in_backward}, before fp16's scaling is undone; give fp32 or bf16"
    for key in ("l2_sp", "ewc"):
        if getattr(training, key):
            yield ("training", key), f"holds a copy of the weights, which {name} is there to save; remove one of the two"
    if training.unfreeze_share:
        yield ("training", "unfreeze_share"), f"unfreezes weights that {name} would have to know from the start; remove one of the two"
