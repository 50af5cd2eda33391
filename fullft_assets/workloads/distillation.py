"""Distillation from the frozen original: a model that learns something new keeps to what the base model makes of a text.

Of a language model it is the distribution of the next token (Hinton et al. 2015, arXiv:1503.02531; Li & Hoiem 2016, arXiv:1606.09282, who
hold a model to its former self so); of an encoder the pooled representation. The base model's forward passes take no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from fullft_assets.settings import DistillationSettings
from fullft_assets.workloads.packed_rows import IS_REPLAYED
from fullft_assets.workloads.token_loss import IGNORED, TokenLoss, in_place_of

#: Logits that exist at a time, the teacher's and the student's together.
_CHUNK_ELEMENTS = 2**25


def frozen(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return a model that only looks: on the device, without gradients or dropout."""
    return model.requires_grad_(False).eval().to(device)


class DistilledTokenLoss:
    """The summed loss of a pass: of each taught token (1 - weight) times its cross-entropy + weight times T² KL(base model || model), both
    distributions at the temperature T; of each other trained token its cross-entropy. Divided by the trained tokens it is a mean as ever.

    Args:
        hard: of the model that is trained.
        teacher: the base model, `frozen`.
        settings: weight and temperature.
        tokens: which trained tokens are taught; unless `all`, batches say which are replayed.
    """

    def __init__(self, hard: TokenLoss, teacher: PreTrainedModel, settings: DistillationSettings, tokens: str):
        self._hard, self._teacher, self._tokens = hard, teacher, tokens
        self._weight, self._temperature = settings.weight, settings.temperature

    def total(self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Return the sum in fp32, differentiable; arguments as for `TokenLoss.total`."""
        inputs = dict(inputs)
        replayed = inputs.pop(IS_REPLAYED, None)
        targets = labels[:, 1:]
        predicted = targets != IGNORED
        taught = predicted
        if self._tokens != "all":
            taught = predicted & (replayed[:, 1:] if self._tokens == "replay" else ~replayed[:, 1:])
        if not taught.any():
            return self._hard.total(model, inputs, labels)
        rows = taught.any(1)
        looked_at = {name: value[rows] for name, value in inputs.items()}
        is_taught = taught[predicted]
        if not self._hard.is_fused:
            with torch.no_grad():
                wanted = self._teacher(**looked_at, use_cache=False).logits[:, :-1][taught[rows]]
            logits = model(**inputs, use_cache=False).logits[:, :-1][predicted]
            return self._plain(logits.float(), wanted.float(), targets[predicted], is_taught)
        wanted = self._hidden_of_teacher(looked_at, taught[rows])
        head, teacher_head = self._hard.head, self._teacher.get_output_embeddings()

        def loss_in_place_of_logits(hidden: torch.Tensor) -> torch.Tensor:
            total = DistilledCrossEntropy.apply(
                hidden[:, :-1][predicted], head.weight, head.bias, targets[predicted], is_taught,
                wanted, teacher_head.weight, teacher_head.bias, self._weight, self._temperature,
            )  # fmt: skip
            return total.reshape(1, 1, 1)

        with in_place_of(head, loss_in_place_of_logits):
            return model(**inputs, use_cache=False).logits.sum()

    @torch.no_grad()
    def _hidden_of_teacher(self, inputs: Mapping[str, Any], taught: torch.Tensor) -> torch.Tensor:
        """Return [taught tokens, hidden] what the teacher's head is given."""
        found: list[torch.Tensor] = []

        def keep_in_place_of_logits(hidden: torch.Tensor) -> torch.Tensor:
            found.append(hidden[:, :-1][taught])
            return hidden.new_zeros((1, 1, 1))

        with in_place_of(self._teacher.get_output_embeddings(), keep_in_place_of_logits):
            self._teacher(**inputs, use_cache=False)
        return found[0]

    def _plain(self, logits: torch.Tensor, wanted: torch.Tensor, targets: torch.Tensor, is_taught: torch.Tensor) -> torch.Tensor:
        hard = functional.cross_entropy(logits, targets, reduction="none") * torch.where(is_taught, 1 - self._weight, 1.0)
        ours, theirs = (functional.log_softmax(values / self._temperature, -1) for values in (logits[is_taught], wanted))
        return hard.sum() + self._weight * self._temperature**2 * functional.kl_div(ours, theirs, reduction="sum", log_target=True)


class DistilledCrossEntropy(torch.autograd.Function):
    """The same of `hidden @ weight.T + bias`, a chunk of tokens at a time, with its gradients at once: see `token_loss.LinearCrossEntropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        is_taught: torch.Tensor,
        wanted: torch.Tensor,
        teacher_weight: torch.Tensor,
        teacher_bias: torch.Tensor | None,
        share: float,
        temperature: float,
    ) -> torch.Tensor:
        """Return a scalar in fp32.

        Args:
            ctx: what backward needs.
            hidden, weight, bias: [tokens, hidden], [vocabulary, hidden], [vocabulary] or None.
            targets: [tokens] token ids.
            is_taught: [tokens] bool.
            wanted: [taught tokens, hidden] the teacher's hidden states.
            teacher_weight, teacher_bias: the teacher's head.
            share: of the teacher in the loss of a taught token.
            temperature: of both distributions.
        """
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        with torch.autocast(kind, enabled=False):
            states, matrix, theirs = hidden.to(dtype), weight.to(dtype), teacher_weight.to(dtype)
            offset, their_offset = (None if values is None else values.to(dtype) for values in (bias, teacher_bias))
            size = max(1, _CHUNK_ELEMENTS // (2 * len(weight)))
            first = 0
            for start in range(0, len(hidden), size):
                part, answers = states[start : start + size], targets[start : start + size, None]
                soft = is_taught[start : start + size]
                hard_share = torch.where(soft, 1 - share, 1.0)[:, None]
                logits = functional.linear(part, matrix, offset).float()
                scores = torch.log_softmax(logits, -1)
                total -= (scores.gather(1, answers) * hard_share).sum()
                slope = scores.exp_()
                slope.scatter_add_(1, answers, torch.full_like(answers, -1, dtype=torch.float32))
                slope *= hard_share
                count = int(soft.sum())
                if count:
                    asked = functional.linear(wanted[first : first + count].to(dtype), theirs, their_offset).float()
                    asked = torch.log_softmax(asked / temperature, -1)
                    ours = torch.log_softmax(logits[soft] / temperature, -1)
                    total += share * temperature**2 * functional.kl_div(ours, asked, reduction="sum", log_target=True)
                    slope[soft] += share * temperature * (ours.exp() - asked.exp())
                    first += count
                slope = slope.to(dtype)
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                if grad_hidden is not None:
                    grad_hidden[start : start + size] = slope @ matrix
                if grad_weight is not None:
                    grad_weight += slope.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients, in place."""
        hidden, weight, bias = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        return (
            None if hidden is None else hidden.mul_(slope),
            None if weight is None else weight.mul_(slope).to(of_weight),
            None if bias is None else bias.mul_(slope).to(of_bias),
            *(None,) * 7,
        )


def pooled(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the last hidden states over a text's tokens: [rows, hidden]."""
    weights = mask.unsqueeze(-1)
    return (output.hidden_states[-1].float() * weights).sum(1) / weights.sum(1)


def held_representations(
    total_loss: Callable[[Any, torch.Tensor], torch.Tensor], teacher: PreTrainedModel, weight: float
) -> Callable[[nn.Module, Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """Return the summed loss of a pass of a classifier: (1 - weight) times its own + weight times the summed distance (1 - cosine) of each
    row's pooled representation from the base model's, once for each label that the row learns from, since the sum is divided by these.

    Args:
        total_loss: (output, labels) -> its own summed loss.
        teacher: the base model, `frozen`.
        weight: share of the distance.
    """

    def total(model: nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        output = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            wanted = pooled(teacher(**inputs, output_hidden_states=True), inputs["attention_mask"])
        distance = 1 - functional.cosine_similarity(pooled(output, inputs["attention_mask"]), wanted, dim=-1)
        num_learned = (labels.reshape(len(labels), -1) != IGNORED).sum(1)
        return (1 - weight) * total_loss(output, labels) + weight * (distance * num_learned).sum()

    return total
