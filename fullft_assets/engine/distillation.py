"""Distillation from the frozen original: a model that learns something new keeps to what the base model makes of a text.

Of a language model it is the distribution of the next token (Hinton et al. 2015, arXiv:1503.02531; Li & Hoiem 2016, arXiv:1606.09282, who
hold a model to its former self so); of an encoder the pooled representation. The base model's forward passes take no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from fullft_assets.engine.packed_rows import IS_REPLAYED
from fullft_assets.models.token_loss import IGNORED, LossOfHead, TokenLoss, cross_entropy, dtype_of_logits, in_place_of, loss_in_head
from fullft_assets.settings import DistillationSettings


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
        looked_at = {name: value[taught.any(1)] for name, value in inputs.items()}
        compute = self._fused if self._hard.is_fused else self._plain
        return compute(model, inputs, looked_at, targets, taught)

    def _fused(
        self, model: nn.Module, inputs: Mapping[str, Any], looked_at: Mapping[str, Any], targets: torch.Tensor, taught: torch.Tensor
    ) -> torch.Tensor:
        predicted, head, teacher_head = targets != IGNORED, self._hard.head, self._teacher.get_output_embeddings()
        wanted = self._hidden_of_teacher(looked_at, taught[taught.any(1)])
        lesson = Lesson(taught[predicted], wanted, teacher_head.weight, teacher_head.bias, self._weight, self._temperature)

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            return DistilledCrossEntropy.apply(hidden[:, :-1][predicted], head.weight, head.bias, targets[predicted], lesson)

        return loss_in_head(head, loss_of, model, inputs)

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

    def _plain(
        self, model: nn.Module, inputs: Mapping[str, Any], looked_at: Mapping[str, Any], targets: torch.Tensor, taught: torch.Tensor
    ) -> torch.Tensor:
        predicted = targets != IGNORED
        with torch.no_grad():
            wanted = self._teacher(**looked_at, use_cache=False).logits[:, :-1][taught[taught.any(1)]].float()
        logits = model(**inputs, use_cache=False).logits[:, :-1][predicted].float()
        is_taught = taught[predicted]
        hard = functional.cross_entropy(logits, targets[predicted], reduction="none") * torch.where(is_taught, 1 - self._weight, 1.0)
        distance, _ = divergence(logits[is_taught], wanted, self._temperature)
        return hard.sum() + self._weight * distance


@dataclass(frozen=True)
class Lesson:
    """What the base model makes of those of n trained tokens that are taught.

    Attributes:
        is_taught: [tokens] bool.
        hidden: [taught tokens, hidden] its hidden states.
        weight, bias: its head.
        share: of it in the loss of a taught token.
        temperature: of both distributions.
    """

    is_taught: torch.Tensor
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    share: float
    temperature: float


class DistilledCrossEntropy(LossOfHead):
    """The loss of `DistilledTokenLoss` of the logits `hidden @ weight.T + bias`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, lesson: Lesson
    ) -> torch.Tensor:
        """Return a scalar in fp32; arguments as for `summed`, `targets`, [tokens] token ids, and the lesson."""
        dtype = dtype_of_logits(weight)
        matrix, offset = lesson.weight.to(dtype), None if lesson.bias is None else lesson.bias.to(dtype)
        number = lesson.is_taught.cumsum(0) - 1

        def look(chunk: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, taught = logits.float(), lesson.is_taught[chunk]
            loss, slope = cross_entropy(logits, targets[chunk], torch.where(taught, 1 - lesson.share, 1.0))
            if taught.any():
                wanted = functional.linear(lesson.hidden[number[chunk][taught]].to(dtype), matrix, offset)
                distance, pull = divergence(logits[taught], wanted.float(), lesson.temperature)
                loss += lesson.share * distance
                slope[taught] += lesson.share * pull
            return loss, slope

        return LossOfHead.summed(ctx, hidden, weight, bias, look, num_heads=2)


def divergence(logits: torch.Tensor, wanted: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T² KL(wanted || logits), summed over the tokens, and its slope by the logits; both [tokens, vocabulary] in fp32."""
    ours, theirs = (torch.log_softmax(values / temperature, -1) for values in (logits, wanted))
    distance = temperature**2 * functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    return distance, temperature * (ours.exp() - theirs.exp())


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
