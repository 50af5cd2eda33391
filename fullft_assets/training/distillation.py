"""Distillation from the frozen base model: a model that learns something new keeps the base model's outputs.

For a language model these are the distributions of the next token (Hinton et al. 2015, arXiv:1503.02531; Li &
Hoiem 2016, arXiv:1606.09282, distil a model from its former self); for an encoder the pooled representations.
The base model's passes take no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from fullft_assets.models.inference import move
from fullft_assets.models.pooled import pool
from fullft_assets.models.token_loss import (
    IGNORED,
    LossOfHead,
    TokenLoss,
    cross_entropy,
    dtype_of_logits,
    loss_in_head,
    output_head,
    replaced_forward,
)
from fullft_assets.training.packed_rows import IS_REPLAYED


def frozen(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return a model on the device, without gradients or dropout."""
    model.requires_grad_(False).eval()
    move(model, device)
    return model


class DistilledTokenLoss:
    """The summed loss of a pass: of each distilled token (1 - weight) times its cross-entropy + weight times
    KL(base model || model); of each other trained token its cross-entropy. Divided by the number of trained
    tokens it is a mean. Distilled are the replayed tokens where a batch has a mask of them, else all trained
    ones.
    """

    def __init__(self, hard: TokenLoss, teacher: PreTrainedModel, weight: float):
        self._hard = hard
        self._teacher = teacher
        self._weight = weight

    def total(self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Return the sum in fp32, differentiable; arguments as for `TokenLoss.total`."""
        inputs = dict(inputs)
        replayed = inputs.pop(IS_REPLAYED, None)
        targets = labels[:, 1:]
        predicted = targets != IGNORED
        distilled = predicted if replayed is None else predicted & replayed[:, 1:]
        if not distilled.any():
            return self._hard.total(model, inputs, labels)
        teacher_inputs = {name: value[distilled.any(1)] for name, value in inputs.items()}
        compute = self._fused if self._hard.is_fused else self._plain
        return compute(model, inputs, teacher_inputs, targets, distilled)

    def _fused(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        teacher_inputs: Mapping[str, Any],
        targets: torch.Tensor,
        distilled: torch.Tensor,
    ) -> torch.Tensor:
        predicted = targets != IGNORED
        head = self._hard.head
        teacher_head = output_head(self._teacher)
        teacher_hidden = self._hidden_of_teacher(teacher_inputs, distilled[distilled.any(1)])
        teacher = TeacherTargets(
            distilled[predicted],
            teacher_hidden,
            teacher_head.weight,
            teacher_head.bias,
            self._weight,
        )

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            return DistilledCrossEntropy.apply(
                hidden[:, :-1][predicted], head.weight, head.bias, targets[predicted], teacher
            )

        return loss_in_head(head, loss_of, model, inputs)

    @torch.no_grad()
    def _hidden_of_teacher(self, inputs: Mapping[str, Any], distilled: torch.Tensor) -> torch.Tensor:
        """Return the input of the teacher's head, [distilled tokens, hidden]."""
        hidden_states: list[torch.Tensor] = []

        def keep_hidden(hidden: torch.Tensor) -> torch.Tensor:
            hidden_states.append(hidden[:, :-1][distilled])
            return hidden.new_zeros((1, 1, 1))

        with replaced_forward(output_head(self._teacher), keep_hidden):
            self._teacher(**inputs, use_cache=False)
        return hidden_states[0]

    def _plain(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        teacher_inputs: Mapping[str, Any],
        targets: torch.Tensor,
        distilled: torch.Tensor,
    ) -> torch.Tensor:
        predicted = targets != IGNORED
        with torch.no_grad():
            teacher_logits = (
                self._teacher(**teacher_inputs, use_cache=False)
                .logits[:, :-1][distilled[distilled.any(1)]]
                .float()
            )
        logits = model(**inputs, use_cache=False).logits[:, :-1][predicted].float()
        is_distilled = distilled[predicted]
        hard = functional.cross_entropy(logits, targets[predicted], reduction="none") * torch.where(
            is_distilled, 1 - self._weight, 1.0
        )
        distance, _ = divergence(logits[is_distilled], teacher_logits)
        return hard.sum() + self._weight * distance


@dataclass(frozen=True)
class TeacherTargets:
    """The base model's outputs for those of n trained tokens that are distilled.

    Attributes:
        is_distilled: [tokens] bool.
        hidden: [distilled tokens, hidden] its hidden states.
        weight, bias: its head.
        share: of the base model in the loss of a distilled token.
    """

    is_distilled: torch.Tensor
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    share: float


class DistilledCrossEntropy(LossOfHead):
    """The loss of `DistilledTokenLoss` of the logits `hidden @ weight.T + bias`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        teacher: TeacherTargets,
    ) -> torch.Tensor:
        """Return a scalar in fp32; arguments as for `summed`, `targets`, [tokens] token ids, and
        `teacher`.
        """
        dtype = dtype_of_logits(weight)
        matrix, offset = teacher.weight.to(dtype), None if teacher.bias is None else teacher.bias.to(dtype)
        number = teacher.is_distilled.cumsum(0) - 1

        def look(chunk: slice, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, distilled = logits.float(), teacher.is_distilled[chunk]
            loss, slope = cross_entropy(
                logits, targets[chunk], torch.where(distilled, 1 - teacher.share, 1.0)
            )
            if distilled.any():
                teacher_logits = functional.linear(
                    teacher.hidden[number[chunk][distilled]].to(dtype), matrix, offset
                )
                distance, pull = divergence(logits[distilled], teacher_logits.float())
                loss += teacher.share * distance
                slope[distilled] += teacher.share * pull
            return loss, slope

        return LossOfHead.summed(ctx, hidden, weight, bias, look, num_heads=2)


def divergence(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(targets || logits), summed over the tokens, and its slope by the logits; all are [tokens,
    vocabulary] in fp32.
    """
    student, teacher = (torch.log_softmax(values, -1) for values in (logits, targets))
    distance = functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return distance, student.exp() - teacher.exp()


def pooled(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the last hidden states over each text's tokens: [rows, hidden]."""
    return pool(output.hidden_states[-1].float(), mask, "mean")


def distil_representations(
    total_loss: Callable[[Any, torch.Tensor], torch.Tensor], teacher: PreTrainedModel, weight: float
) -> Callable[[nn.Module, Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """Return the summed loss of a pass of a classifier: (1 - weight) times its own + weight times the summed
    distance (1 - cosine) of each row's pooled representation from the base model's, once for each label that
    the row learns from, since the sum is divided by these.
    """

    def total(model: nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        output = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            teacher_vectors = pooled(teacher(**inputs, output_hidden_states=True), inputs["attention_mask"])
        distance = 1 - functional.cosine_similarity(
            pooled(output, inputs["attention_mask"]), teacher_vectors, dim=-1
        )
        num_learned = (labels.reshape(len(labels), -1) != IGNORED).sum(1)
        return (1 - weight) * total_loss(output, labels) + weight * (distance * num_learned).sum()

    return total
