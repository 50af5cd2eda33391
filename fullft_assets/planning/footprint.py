"""The memory that a process needs for a training step whose tensors were counted: on a GPU, or in the memory
of a CPU.
"""

from __future__ import annotations

from fullft_assets.planning.measurements import StepMemory

#: A CPU's allocator keeps the memory of freed tensors below 32 MiB in pieces that later ones do not always
#: fit into: more than they were, and about as much again where gradients, which stay, fall into the gaps
#: between recomputed layers. Matrix multiplications pack their factors, the more the larger the vocabulary
#: is. Measured by `python -m benchmarks.memory_plan`.
_CPU_SMALL, _CPU_SMALL_RECOMPUTED, _CPU_LOGITS, _CPU_FIXED = 0.2, 0.74, 0.2, 97 * 2**20
#: All that is added where freed memory goes back to the system (`TrainingSettings.frees_as_it_goes`).
_CPU_GIVEN_BACK = 107 * 2**20
#: A GPU's allocator rounds and splits blocks, cuBLAS has workspaces. An assumption: no GPU was at hand to
#: measure it.
_GPU_MARGIN, _GPU_FIXED = 1.06, 200 * 2**20
#: Memory of a card that the driver's context and the communication of several cards take.
GPU_CONTEXT_BYTES = 2**30


def peak_on_cpu(step: StepMemory, libraries: int) -> int:
    """Return the resident bytes of a training process on a CPU.

    Args:
        libraries: resident bytes of the process before the model is loaded.
    """
    if step.is_recomputed and not step.gradients:
        return int(libraries + step.state + step.passing + _CPU_GIVEN_BACK)
    # Nothing is reused between what passes and what stays: the blocks of passing tensors are not returned to
    # the system.
    gaps = _CPU_SMALL_RECOMPUTED if step.is_recomputed else _CPU_SMALL
    return int(
        libraries + step.state + step.passing + gaps * step.small + _CPU_LOGITS * step.logits + _CPU_FIXED
    )


def peak_on_gpu(step: StepMemory, processes: int = 1, *, is_sharded: bool = False) -> int:
    """Return the bytes that the allocator of each GPU needs.

    Args:
        processes: one for each GPU. Without sharding each sums its gradients in buckets, a second copy of
            these (DDP); with it (FSDP2) each has a part of the state, and two layers in full while they
            compute.
    """
    peak = step.peak
    if is_sharded:
        peak = step.state // processes + step.passing + 2 * step.largest_layer
    elif processes > 1:
        peak += step.gradients
    return int(_GPU_MARGIN * peak + _GPU_FIXED)
