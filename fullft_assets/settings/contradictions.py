"""Settings of training that contradict each other: for the check of a YAML, for workloads, and for the advice
of a plan.
"""

from collections.abc import Iterator

from fullft_assets.settings import OF_WHOLE_WEIGHTS, TrainingSettings

#: (the key below `attributes`, what is wrong with it and the fix).
Contradiction = tuple[tuple[str, str], str]


def contradictions(training: TrainingSettings, processes: int) -> Iterator[Contradiction]:
    """Yield each contradiction of the optimizer, the number format of the weights and their sharding with
    other settings.
    """
    sharding, optimizer = training.sharding, training.optimizer
    is_sharded, is_bf16 = sharding != "none", training.weights == "bf16"
    takes_shards = training.weights == "fp32" and training.chosen_optimizer.takes_shards
    steps_in_backward = training.steps_in_backward
    in_backward = f"{optimizer} steps in the backward pass"
    rules: list[tuple[bool, tuple[str, str], str]] = [
        (
            is_sharded and processes == 1,
            ("training", "sharding"),
            f"{sharding} needs more than one process; set launcher.processes to 2 or more",
        ),
        (
            is_sharded and not takes_shards,
            ("training", "sharding"),
            f"{sharding} works with optimizer: adamw and weights: fp32 only; remove the other setting",
        ),
        *(
            (
                is_sharded and bool(getattr(training, key)),
                ("training", key),
                f"needs all weights in each process, which sharding: {sharding} distributes; remove one of"
                " the two",
            )
            for key in OF_WHOLE_WEIGHTS
        ),
        (
            is_sharded and training.compile,
            ("training", "compile"),
            f"is not supported with sharding: {sharding}; remove one of the two",
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
            is_bf16 and not training.chosen_optimizer.takes_bf16,
            ("training", "weights"),
            f"bf16 loses small updates with {optimizer}, which does not round stochastically; use adafactor",
        ),
        (
            steps_in_backward and training.micro_batch_size != training.batch_size,
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
                f"keeps a copy of the weights, the memory that {optimizer} is there to save; remove one of"
                " the two",
            )
            for key in ("l2_sp", "ewc")
        ),
    ]
    return ((key, message) for is_broken, key, message in rules if is_broken)
