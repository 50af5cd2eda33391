"""Settings of training that contradict each other: for the check of a YAML, for workloads, and for the advice
of a plan.
"""

from __future__ import annotations

from collections.abc import Iterator

from fullft_assets.settings import OF_WHOLE_WEIGHTS, TrainingSettings

#: (the key below `attributes`, what is wrong with it and the fix).
Contradiction = tuple[tuple[str, str], str]


def contradictions(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    """Yield each contradiction of the optimizer, the number format of the weights and their sharding with
    other settings.
    """
    yield from _of_sharding(training, processes)
    yield from _of_weights(training)
    if training.steps_in_backward:
        yield from _of_steps_in_backward(training, processes)


def _of_sharding(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    name = training.sharding
    if name == "none":
        return
    if processes == 1:
        yield (
            ("training", "sharding"),
            f"{name} needs more than one process; set launcher.processes to 2 or more",
        )
    if training.weights != "fp32" or not training.chosen_optimizer.takes_shards:
        yield (
            ("training", "sharding"),
            f"{name} works with optimizer: adamw and weights: fp32 only; remove the other setting",
        )
    for key in OF_WHOLE_WEIGHTS:
        if getattr(training, key):
            yield (
                ("training", key),
                (
                    f"needs all weights in each process, which sharding: {name} distributes; remove one of"
                    " the two"
                ),
            )
    if training.compile:
        yield ("training", "compile"), f"is not supported with sharding: {name}; remove one of the two"
    if name == "fsdp2_offload" and training.precision == "fp16":
        yield (
            ("training", "precision"),
            f"fp16 is not supported with sharding: {name}; use fp32, or bf16 where the GPU has it",
        )


def _of_weights(training: TrainingSettings) -> Iterator[Contradiction]:
    if training.weights == "bf16" and training.precision in ("fp32", "fp16"):
        yield (
            ("training", "precision"),
            f"{training.precision} contradicts weights: bf16, which are computed with as they are",
        )
    if training.weights == "bf16" and not training.chosen_optimizer.takes_bf16:
        yield (
            ("training", "weights"),
            (
                f"bf16 loses small updates with {training.optimizer}, which does not round stochastically;"
                " use adafactor"
            ),
        )


def _of_steps_in_backward(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    name = training.optimizer
    in_backward = f"{name} steps in the backward pass"
    if training.micro_batch_size != training.batch_size:
        yield (
            ("training", "micro_batch_size"),
            (
                f"{in_backward} and cannot accumulate: set all {training.batch_size} rows of batch_size, or"
                " lower both"
            ),
        )
    if processes > 1:
        yield ("launcher", "processes"), f"{in_backward}, before processes share gradients; set 1"
    if training.precision == "fp16":
        yield ("training", "precision"), f"{in_backward}, before fp16's scaling is undone; use fp32 or bf16"
    for key in ("l2_sp", "ewc"):
        if getattr(training, key):
            yield (
                ("training", key),
                (
                    f"keeps a copy of the weights, the memory that {name} is there to save; remove one of"
                    " the two"
                ),
            )
