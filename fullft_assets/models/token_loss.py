"""The loss of language models over the trained tokens alone.

Of a row's tokens only some are trained: not prompts, not the first one of a document, not padding. The output
head and the softmax over the vocabulary, which cost a small model a fifth of its time and most of its memory,
are computed for the trained tokens alone, in chunks, with their gradients at once (as in Hsu et al. 2024,
"Liger Kernel", section 3.2), so that logits of a complete batch never exist. Whether a model's head can be
replaced in this way is tested, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from fullft_assets.models.loading import is_outline

#: Label of a token that is not trained.
IGNORED = -100
#: Logits that exist at a time.
_CHUNK_ELEMENTS = 2**25


class TokenLoss:
    """Computes the summed cross-entropy of a model's next-token predictions.

    Args:
        model: a causal language model, not wrapped.
        inputs: of a small forward pass that shows whether the model returns its head's logits unchanged.

    Attributes:
        head: the model's output head.
        is_fused: whether the head is replaced. Not for a model that scales or caps its logits, which would be
            lost.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Any]):
        self.head = output_head(model)
        is_plain = type(self.head) is nn.Linear and "forward" not in vars(self.head)
        self.is_fused = is_plain and self._returns_logits_of_head(model, inputs)

    def total(self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Return the sum over all trained tokens, in fp32, differentiable.

        Args:
            labels: [rows, tokens] the token ids of the rows, IGNORED where not trained. The first token of a
                row is never trained.
        """
        return self._fused(model, inputs, labels) if self.is_fused else plain(model, inputs, labels)

    @torch.no_grad()
    def of_tokens(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy in fp32 of each trained token, row by row, and whether the model ranked it
        first: [tokens] both.
        """
        predicted = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][predicted]
        heads: list[tuple[torch.Tensor, torch.Tensor]] = []
        head = self.head

        def score_in_chunks(hidden: torch.Tensor) -> torch.Tensor:
            states = hidden[:, :-1][predicted]
            size = max(1, _CHUNK_ELEMENTS // len(head.weight))
            for start in range(0, len(states), size):
                logits = functional.linear(states[start : start + size], head.weight, head.bias)
                heads.append(_token_scores(logits, targets[start : start + size]))
            return hidden.new_zeros((1, 1, 1))

        if not self.is_fused:
            return _token_scores(model(**inputs, use_cache=False).logits[:, :-1][predicted], targets)
        with replaced_forward(head, score_in_chunks):
            model(**inputs, use_cache=False)
        losses, is_first = zip(*heads, strict=True)
        return torch.cat(losses), torch.cat(is_first)

    def _fused(self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        targets = labels[:, 1:]
        predicted = targets != IGNORED
        head = self.head

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            return LinearCrossEntropy.apply(
                hidden[:, :-1][predicted], head.weight, head.bias, targets[predicted]
            )

        return loss_in_head(head, loss_of, model, inputs)

    @torch.no_grad()
    def _returns_logits_of_head(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> bool:
        of_head: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: Any, logits: torch.Tensor) -> None:
            of_head.append(logits)

        hook = self.head.register_forward_hook(keep)
        try:
            logits = model(**inputs, use_cache=False).logits
        finally:
            hook.remove()
        if is_outline(model):
            return len(of_head) == 1 and of_head[0] is logits
        return len(of_head) == 1 and of_head[0].shape == logits.shape and bool((of_head[0] == logits).all())


@contextmanager
def replaced_forward(head: nn.Module, compute: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace the computation of a head; wrappers that gather its weights or count its gradients still
    work.
    """
    head.forward = compute
    try:
        yield
    finally:
        del head.forward


def loss_in_head(
    head: nn.Module,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    model: nn.Module,
    inputs: Mapping[str, Any],
) -> torch.Tensor:
    """Return the scalar that a forward pass returns in place of its logits: `loss_of` the head's input [rows,
    tokens, hidden].
    """
    # A copy: FSDP warns about views, whose hooks an operation in place would lose.
    with replaced_forward(head, lambda hidden: loss_of(hidden).reshape(1, 1, 1).clone()):
        return model(**inputs, use_cache=False).logits.sum()


def _token_scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return functional.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1) == targets


def plain(model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Return the same sum, computed from all of the model's own logits."""
    logits = model(**inputs, use_cache=False).logits
    targets = labels[:, 1:]
    predicted = targets != IGNORED
    return functional.cross_entropy(logits[:, :-1][predicted].float(), targets[predicted], reduction="sum")


def output_head(model: PreTrainedModel) -> nn.Linear:
    """Return the output head of a language model."""
    head = model.get_output_embeddings()
    assert head is not None, f"{type(model).__name__} has no output head"
    return cast(nn.Linear, head)


class LossOfHead(torch.autograd.Function):
    """A summed loss of the logits `hidden @ weight.T + bias`; the forward pass computes its gradients, a
    chunk of tokens at a time.
    """

    @staticmethod
    def summed(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        loss_of_chunk: Callable[[slice, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        num_heads: int = 1,
    ) -> torch.Tensor:
        """Return the sum, a scalar in fp32, which `forward` returns.

        Args:
            ctx: takes what backward needs; the first three arguments of `forward` are the next three here.
            hidden: [tokens, hidden].
            weight: [vocabulary, hidden].
            bias: [vocabulary] or None.
            loss_of_chunk: (a chunk of the tokens, their logits) -> their summed loss and its gradient
                [tokens, vocabulary] by the logits, both in fp32.
            num_heads: heads whose logits of a token exist at the same time.
        """
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = dtype_of_logits(weight)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            states, matrix = hidden.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            size = max(1, _CHUNK_ELEMENTS // (num_heads * len(weight)))
            for start in range(0, len(hidden), size):
                chunk = slice(start, start + size)
                loss, slope = loss_of_chunk(chunk, functional.linear(states[chunk], matrix, offset))
                total += loss
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                slope = slope.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = slope @ matrix
                if grad_weight is not None:
                    grad_weight += slope.T @ states[chunk]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    # The decorator loses the name of the first parameter.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients; in place, as each is used once and one is as large as the head."""
        (slope,) = grad_outputs
        hidden, weight, bias = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        return (
            None if hidden is None else hidden.mul_(slope),
            None if weight is None else weight.mul_(slope).to(of_weight),
            None if bias is None else bias.mul_(slope).to(of_bias),
            *(None,) * (len(ctx.needs_input_grad) - 3),
        )


class LinearCrossEntropy(LossOfHead):
    """Summed cross-entropy of the logits `hidden @ weight.T + bias`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return a scalar in fp32; arguments as for `summed`, and `targets`, [tokens] token ids."""
        return LossOfHead.summed(
            ctx, hidden, weight, bias, lambda chunk, logits: cross_entropy(logits, targets[chunk])
        )


def dtype_of_logits(weight: torch.Tensor) -> torch.dtype:
    """Return the dtype that a head computes in: autocast's, else that of its weight."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy and its gradient by the logits, both in fp32.

    Args:
        logits: [tokens, vocabulary].
        targets: [tokens] token ids.
        shares: [tokens] weight of each token; None: 1.
    """
    answers = targets[:, None]
    scores = torch.log_softmax(logits, -1, dtype=torch.float32)
    losses = scores.gather(1, answers)
    # In place: a second table of that size would double the memory.
    slope = scores.exp_()
    slope.scatter_add_(1, answers, torch.full_like(answers, -1, dtype=torch.float32))
    if shares is not None:
        losses *= shares[:, None]
        slope *= shares[:, None]
    return -losses.sum(), slope
