"""Isolation: whether a model keeps documents that share a packed row apart.

A packed row tells its position ids and where documents begin. Most architectures then keep the documents
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
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.models import documents, loading
from fullft_assets.models import precision as precisions
from fullft_assets.models.inference import is_sharded
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

    change = partial(_change, is_shared=is_sharded(model))
    watched = document()
    with_other_end = watched.clone()
    with_other_end[-1] = (watched[-1] + 1) % vocabulary
    # Parts of a model are gathered in the precision that they are trained in.
    is_half = is_sharded(model) and precisions.of_scores(model) != "fp32"
    is_half = is_half or next(model.parameters()).dtype == torch.bfloat16
    precision: Precision = "bf16" if is_half else "fp32"
    is_training = model.training
    model.eval()
    try:
        with precisions.autocast(precision):
            alone = _outputs(model, [[watched]], 0)
            ahead = change([alone[0][:-1]], [_outputs(model, [[with_other_end]], 0)[0][:-1]])
            first, second = (
                _outputs(model, neighbours_of(watched), size, shift) for shift in (0, longest - size)
            )
    except ValueError as error:  # of transformers, where a layer has no kernel for packed rows here
        reason = " ".join(str(error).split())
        return Isolation(False, None, None, None, f"{name} cannot keep documents apart here: {reason}")
    finally:
        model.train(is_training)
    # Not so of a NaN, which says nothing of that.
    if ahead > _ALLOWED_CHANGE[precision]:
        raise SettingsError(
            f"base_model: {name} sees the tokens that it is to predict (a later token moves the logits of"
            f" earlier ones by {ahead:.1e}); give a causal language model such as Llama"
        )
    logits, gradients = change(first[:1], second[:1]), change(first[1:], second[1:])
    from_alone = max(change(first[:1], alone[:1]), change(first[1:], alone[1:]))
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


def attend_apart(model: PreTrainedModel, capacity: int, *, seed: int = 0) -> None:
    """Have a model attend by `documents.attend`, if that computes of one document what its own attention
    does: some families build a mask of their own, such as a window, which no other attention hears of.

    Args:
        capacity: tokens in a row.
    """
    config = model.config.get_text_config()
    own = config._attn_implementation or "eager"
    documents.attend_apart(model)
    if loading.is_outline(model) or not documents.takes_bounds(model):
        return
    # Past the end of a window.
    reach = max(getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size"))
    longest = getattr(config, "max_position_embeddings", None) or capacity
    size = min(capacity, longest, reach + _DOCUMENT_TOKENS)
    vocabulary = input_embeddings(model).num_embeddings
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(min(10, vocabulary // 2), vocabulary, (1, size), generator=generator)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    is_half = next(model.parameters()).dtype == torch.bfloat16 or precisions.of_scores(model) != "fp32"
    precision: Precision = "bf16" if is_half else "fp32"
    is_training = model.training
    model.eval()
    logits = []
    try:
        for attention in (own, documents.NAME):
            model.set_attn_implementation(attention)
            with torch.no_grad(), precisions.autocast(precision):
                logits.append(model(input_ids=ids.to(model.device), use_cache=False, **last).logits[0, -1:])
    finally:
        model.train(is_training)
    change = _change([logits[0].float()], [logits[1].float()], is_shared=is_sharded(model))
    if not change <= _ALLOWED_DIFFERENCE[precision]:
        model.set_attn_implementation(own)


def _outputs(
    model: PreTrainedModel, rows: Sequence[Sequence[torch.Tensor]], start: int, shift: int = 0
) -> list[torch.Tensor]:
    """Return the logits of the document at token `start` of the first row, and the gradients of its loss with
    respect to the trained weights.

    Args:
        shift: added to the positions of each row's last document.
    """
    ids = torch.stack([torch.cat(list(row)) for row in rows]).to(model.device)
    positions = torch.stack([torch.cat([torch.arange(len(document)) for document in row]) for row in rows])
    told = documents.bounds(positions.numpy()) if documents.takes_bounds(model) else {}
    size = len(rows[0][0])
    positions[:, -size:] += shift
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in {"position_ids": positions, **told}.items()
    }
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, start : start + size].float()
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
    elements = [torch.zeros((), device=weight.device) for weight in weights]

    def take(number: int, weight: torch.Tensor) -> None:
        assert weight.grad is not None, "torch calls the hook with the gradient in place"
        part = weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad
        gradient, weight.grad = part.flatten(), None
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


def _change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], *, is_shared: bool) -> float:
    """Return the largest change relative to the largest value, of all parts if processes have a part each."""
    # A process may have no part of a small weight.
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if b.numel()]
    moved, largest = (max((a - b).abs().max() for a, b in pairs), max(b.abs().max() for _, b in pairs))
    sizes = torch.stack([moved, largest])
    if is_shared:
        torch.distributed.all_reduce(sizes.nan_to_num_(torch.inf), torch.distributed.ReduceOp.MAX)
    return sizes[0].item() / max(sizes[1].item(), 1e-30)
