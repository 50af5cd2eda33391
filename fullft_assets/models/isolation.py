"""Isolation: whether a model keeps documents that share a packed row apart.

In a packed row only the position ids show where a document begins. Most architectures then keep the documents
apart; recurrent ones and some attention kernels do not, and nothing in the loss would show it. So each model
is tested before it is trained: while the neighbours of a document change, and one is part of a document as
long as a row, its logits and its gradients must not, and they must be the same as those of the document alone
in a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.models import loading
from fullft_assets.models import precision as precisions
from fullft_assets.models.loading import input_embeddings
from fullft_assets.models.precision import Precision

#: Maximum change of a document's logits or gradients as its neighbours change, relative to the largest one.
#: Sums are taken in the same order both times, except by mixtures of experts (1e-8 in fp32). The weakest leak
#: seen, of a convolution with random weights, is 8e-5. Weights in bf16 are tested in it.
_ALLOWED_CHANGE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}
#: Maximum difference from the document alone, whose sums are taken in another order, on GPUs in TF32.
_ALLOWED_DIFFERENCE: dict[Precision, float] = {"fp32": 5e-3, "bf16": 5e-2}
#: Compared elements of a weight's gradient.
_COMPARED_ELEMENTS = 2**12
#: Tokens of a probed document, where a row has room for three of them.
_DOCUMENT_TOKENS = 16


@dataclass(frozen=True)
class Isolation:
    """The result of a probe; the three numbers are None where the model was not run.

    Attributes:
        is_isolated: whether rows may be packed.
        logit_change: largest change of a document's logits as its neighbours change, relative to its largest
            logit.
        gradient_change: the same of the gradients of its loss.
        difference_from_alone: the same between the document in a packed row and alone.
        reason: why rows may be packed or not, one line.
    """

    is_isolated: bool
    logit_change: float | None
    gradient_change: float | None
    difference_from_alone: float | None
    reason: str


def probe(model: PreTrainedModel, capacity: int, *, seed: int = 0) -> Isolation:
    """Test a model on packed rows of random tokens; its weights, gradients and mode stay as they were.

    Args:
        capacity: tokens in a row, at least 6.

    Raises:
        SettingsError: the model sees tokens that it is to predict.
    """
    name = model.config.model_type
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return Isolation(
            False, None, None, None, f"{name} takes no position ids: it does not know where a document begins"
        )
    if loading.is_outline(model):
        return Isolation(
            True,
            None,
            None,
            None,
            f"assumed that {name} keeps documents apart: it has no weights to test it with",
        )
    size = min(_DOCUMENT_TOKENS, capacity // 3)
    vocabulary = input_embeddings(model).num_embeddings
    generator = torch.Generator().manual_seed(seed)

    def document() -> torch.Tensor:
        # Most vocabularies begin with special tokens, which some models treat differently.
        return torch.randint(min(10, vocabulary // 2), vocabulary, (size,), generator=generator)

    # A neighbour at the end of a document as long as a row: some models change for all that they read as
    # soon as a document is long.
    longest = min(
        capacity, getattr(model.config.get_text_config(), "max_position_embeddings", None) or capacity
    )

    def neighbours_of(watched: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[document(), watched, document()], [document(), document(), document()]]

    watched = document()
    with_other_end = watched.clone()
    with_other_end[-1] = (watched[-1] + 1) % vocabulary
    precision: Precision = "bf16" if next(model.parameters()).dtype == torch.bfloat16 else "fp32"
    is_training = model.training
    model.eval()
    try:
        with precisions.autocast(precision):
            alone = _outputs(model, [[watched]], 0)
            ahead = _change([alone[0][:-1]], [_outputs(model, [[with_other_end]], 0)[0][:-1]])
            first, second = (
                _outputs(model, neighbours_of(watched), size, shift) for shift in (0, longest - size)
            )
    finally:
        model.train(is_training)
    # Not so of a NaN, which says nothing of that.
    if ahead > _ALLOWED_CHANGE[precision]:
        raise SettingsError(
            f"base_model: {name} sees the tokens that it is to predict (a later token moves the logits of"
            f" earlier ones by {ahead:.1e}); give a causal language model such as Llama"
        )
    logits, gradients = _change(first[:1], second[:1]), _change(first[1:], second[1:])
    from_alone = max(_change(first[:1], alone[:1]), _change(first[1:], alone[1:]))
    # Written so that a NaN fails.
    is_isolated = (
        max(logits, gradients) <= _ALLOWED_CHANGE[precision] and from_alone <= _ALLOWED_DIFFERENCE[precision]
    )
    moved = f"logits by {logits:.1e}, gradients by {gradients:.1e}; from alone by {from_alone:.1e}"
    verb = "do not move" if is_isolated else "move"
    return Isolation(
        is_isolated,
        logits,
        gradients,
        from_alone,
        f"documents that share a row of {name} {verb} one another ({moved})",
    )


def _outputs(
    model: PreTrainedModel, rows: Sequence[Sequence[torch.Tensor]], start: int, shift: int = 0
) -> list[torch.Tensor]:
    """Return the logits of the document at token `start` of the first row, and the gradients of its loss with
    respect to the trained weights.

    Args:
        shift: added to the positions of each row's last document.
    """
    ids = torch.stack([torch.cat(list(row)) for row in rows]).to(model.device)
    positions = torch.stack(
        [torch.cat([torch.arange(len(document)) for document in row]) for row in rows]
    ).to(model.device)
    size = len(rows[0][0])
    positions[:, -size:] += shift
    logits = (
        model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, start : start + size].float()
    )
    loss = functional.cross_entropy(logits[:-1], ids[0, start + 1 : start + size])
    return [
        logits.detach(),
        *_gradients(loss, [weight for weight in model.parameters() if weight.requires_grad]),
    ]


def _gradients(loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return evenly spread elements of each weight's gradient, at most `_COMPARED_ELEMENTS`: all at once
    would take as much memory as the weights.
    """
    earlier_gradients = [weight.grad for weight in weights]
    # An expert that no token chose has no gradient.
    elements = [weight.new_zeros(()) for weight in weights]

    def take(number: int, weight: torch.Tensor) -> None:
        assert weight.grad is not None, "torch calls the hook with the gradient in place"
        gradient, weight.grad = weight.grad.flatten(), None
        elements[number] = gradient[:: max(1, -(-len(gradient) // _COMPARED_ELEMENTS))].float().clone()

    for weight in weights:
        weight.grad = None
    hooks = [
        weight.register_post_accumulate_grad_hook(partial(take, number))
        for number, weight in enumerate(weights)
    ]
    try:
        loss.backward()
    finally:
        for hook, weight, gradient in zip(hooks, weights, earlier_gradients, strict=True):
            hook.remove()
            weight.grad = gradient
    return elements


def _change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    largest = max(tensor.abs().max().item() for tensor in before)
    return max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)) / max(largest, 1e-30)
