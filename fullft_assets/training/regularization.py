"""Regularization towards the base model: L2-SP pulls all weights alike, EWC each by its importance for
general text; distillation keeps the outputs; after training, WiSE-FT takes weights between both models.

Distilled are the distributions of the next token of a language model (Hinton et al. 2015, arXiv:1503.02531;
Li & Hoiem 2016, arXiv:1606.09282, distil a model from its former self), and the pooled representations of an
encoder. The base model's passes take no gradients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from fullft_assets.errors import SettingsError
from fullft_assets.models import documents, layers
from fullft_assets.models.inference import evaluating, is_sharded, move, reshard, to_device
from fullft_assets.models.loading import pool
from fullft_assets.models.token_loss import IGNORED, IS_REPLAYED, TokenLoss, predictions
from fullft_assets.settings import TrainingSettings
from fullft_assets.training import ranks, sharding
from fullft_assets.training.optimizers.low_memory import local
from fullft_assets.training.recipe import Recipe


def anchors(recipe: Recipe, model: PreTrainedModel, settings: TrainingSettings, seed: int) -> "list[Anchor]":
    """Return the pulls on a model that the settings ask for; they lead to the base model also where training
    starts from another one. All processes that share the model must call this.

    Torch's random state stays as it is.
    """
    if not settings.l2_sp and not settings.ewc:
        return []
    # Parts are gathered in the precision of the settings; squared gradients of fp16 would vanish.
    settings = settings.model_copy(update={"precision": "fp32"})
    with torch.random.fork_rng():
        original = sharding.load(recipe.load_original, settings, is_shared=is_sharded(model))
    move(original)
    anchor = partial(Anchor, original, has_new_head=recipe.has_new_head)
    return [
        *([anchor(settings.l2_sp)] if settings.l2_sp else []),
        *([anchor(settings.ewc, importance=fisher(recipe, original, seed))] if settings.ewc else []),
    ]


def fisher(recipe: Recipe, model: PreTrainedModel, seed: int) -> Mapping[str, torch.Tensor]:
    """Return the diagonal of the Fisher information of a base model on general text, by parameter; scaled so
    that its mean is 1.

    Each text's log-likelihood is differentiated alone and the squares are averaged (Kirkpatrick et al. 2017,
    arXiv:1612.00796). It is the empirical Fisher information: of the given texts, not of texts that the model
    would write.

    Args:
        model: the base model, on its device; its gradients are dropped, its mode is restored. Processes that
            share it make the passes of each text together, and each gets the importance of its part.

    Raises:
        SettingsError: there is no text.
    """
    parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    sums = {name: torch.zeros_like(local(weight.detach())) for name, weight in parameters.items()}
    count = 0
    with evaluating(model):
        for value in recipe.log_likelihoods(model, seed):
            # FSDP2 averages gradients over the processes in this pass, where those of a text are equal.
            value.backward()
            for name, weight in parameters.items():
                if weight.grad is not None:  # a new head is not part of it
                    sums[name].add_(local(weight.grad).square())
                    weight.grad = None
            count += 1
    if not count:
        raise SettingsError(
            "training.ewc: neither snapshot.replay nor snapshot.general has a text to estimate the importance"
            " of weights on"
        )
    total = sum(float(values.double().sum()) for values in sums.values())
    size = sum(values.numel() for values in sums.values())
    # Processes that do not share the model have equal numbers: their ratio stays.
    total, size = ranks.total(torch.tensor([total, size], dtype=torch.float64)).tolist()
    if not total > 0:
        raise SettingsError(
            "training.ewc: the importance of the weights for the general texts is zero or not finite; look at"
            " snapshot.general"
        )
    return {name: values.mul_(size / total) for name, values in sums.items()}


class Anchor:
    """A pull to the pretrained weights: `strength` times the distance, times each weight's importance, added
    to its gradient.

    With equal importance it is L2-SP (arXiv:1802.01483, eq. 3), with the Fisher information EWC
    (arXiv:1612.00796, eq. 3). It is added after clipping, so that a large loss gradient does not outweigh it.
    A new head is not pulled.

    Args:
        model: with the pretrained weights, which are kept and not copied.
        importance: of each weight, by parameter. Default: equal.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        strength: float,
        *,
        has_new_head: bool,
        importance: Mapping[str, torch.Tensor] | None = None,
    ):
        self._strength = strength
        self._importance = importance
        head = layers.head_prefixes(model) if has_new_head else ()
        self._start = {
            name: local(parameter.detach())
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(head)
        }

    @torch.no_grad()
    def pull(self, model: torch.nn.Module) -> None:
        """Add the pull to the gradients of a model; each process that shares it, to its part."""
        for name, parameter in model.named_parameters():
            if name in self._start and parameter.grad is not None:
                distance = local(parameter.detach()) - self._start[name]
                if self._importance is not None:
                    distance.mul_(self._importance[name])
                local(parameter.grad).add_(distance, alpha=self._strength)


@dataclass(frozen=True)
class Interpolated:
    """The chosen interpolation of WiSE-FT.

    Attributes:
        alpha: share of the fine-tuned weights in the model; 1 = the fine-tuned weights themselves.
        scores: of each alpha that was tried: `alpha`, `validation_loss` and others.
    """

    alpha: float
    scores: list[dict[str, Any]]


@torch.no_grad()
def interpolate(
    model: torch.nn.Module,
    original: PreTrainedModel,
    alphas: Sequence[float],
    score: Callable[[], dict[str, float]],
    *,
    has_new_head: bool,
    is_spent: Callable[[dict[str, float]], bool],
) -> Interpolated | None:
    """Put weights between the original's and a model's own into the model (WiSE-FT, Wortsman et al. 2021,
    arXiv:2109.01903): those with the lowest validation loss within the budget.

    Args:
        model: a sharded one is resharded.
        original: the base model; a new head of it is not used: the fine-tuned head stays. Of processes that
            share the model each has its part of both.
        score: returns the same scores in all of these processes.

    Returns:
        The chosen interpolation; None where no alpha is within the budget, the model is then as it was.
    """
    head = layers.head_prefixes(original) if has_new_head else ()
    start = {name: local(value) for name, value in original.named_parameters() if not name.startswith(head)}
    mixed = {
        name: local(value)
        for name, value in model.named_parameters()
        if name in start and value.requires_grad  # mixed with itself, a frozen weight would be rounded
    }
    tuned_weights = {name: value.detach().to("cpu", copy=True) for name, value in mixed.items()}

    def put(alpha: float) -> None:
        # What scoring gathered has the weights of the alpha before.
        reshard(model)
        for name, value in mixed.items():
            # Not lerp: at 1 the result must be the fine-tuned weight to the last bit.
            weight = tuned_weights[name].to(value.device)
            value.copy_(weight if alpha == 1 else start[name].to(value.device) * (1 - alpha) + weight * alpha)

    scores = []
    for alpha in alphas:
        put(alpha)
        scores.append({"alpha": alpha, **score()})
    candidates = [line for line in scores if math.isfinite(line["validation_loss"]) and not is_spent(line)]
    if not candidates:
        put(1)
        return None
    # Of equal losses the larger share of the fine-tuned weights.
    best_alpha = min(candidates, key=lambda line: (line["validation_loss"], -line["alpha"]))["alpha"]
    put(best_alpha)
    return Interpolated(best_alpha, scores)


def load_teacher(recipe: Recipe, student: PreTrainedModel, settings: TrainingSettings) -> PreTrainedModel:
    """Return the base model on the device, without gradients or dropout; in parts where processes share the
    student.
    """
    teacher = sharding.load(recipe.load_original, settings, is_shared=is_sharded(student))
    teacher.requires_grad_(False).eval()
    move(teacher)
    return teacher


class DistilledTokenLoss:
    """The summed loss of a pass: of each distilled token (1 - weight) times its cross-entropy + weight times
    KL(base model || model); of each other trained token its cross-entropy. Divided by the number of trained
    tokens it is a mean. Distilled are the replayed tokens where a batch has a mask of them, else all trained
    ones. The logits of a pass exist at once, the base model's beside the model's own.
    """

    def __init__(self, hard: TokenLoss, teacher: PreTrainedModel, weight: float):
        self._hard = hard
        self._teacher = teacher
        self._weight = weight

    def total(self, model: torch.nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Return the sum in fp32, differentiable; arguments as for `TokenLoss.total`."""
        replayed = inputs.get(IS_REPLAYED)
        student = predictions(model, inputs, labels)
        is_distilled = (
            torch.ones_like(student.positions, dtype=torch.bool)
            if replayed is None
            else replayed.flatten()[student.positions + 1]
        )
        is_needed = bool(is_distilled.any())
        # Processes that share the teacher make its passes together.
        if not (ranks.any_rank(is_needed) if is_sharded(self._teacher) else is_needed):
            return self._hard.total(model, inputs, labels)
        distilled = student.positions[is_distilled]
        width = labels.shape[1]
        rows, numbers = torch.unique(distilled // width, return_inverse=True)
        # A pass for the others' sake has a row, of which nothing is used.
        rows = rows if is_needed else rows.new_zeros(1)
        teacher_inputs = {
            name: value[rows] for name, value in student.inputs.items() if name not in documents.BOUNDS
        }
        if documents.takes_bounds(self._teacher) and "position_ids" in teacher_inputs:
            teacher_inputs |= {
                name: to_device(value)
                for name, value in documents.bounds(teacher_inputs["position_ids"].numpy(force=True)).items()
            }
        with torch.no_grad():
            teacher_logits = self._teacher(**teacher_inputs, use_cache=False).logits.flatten(0, 1)
            teacher_logits = teacher_logits.index_select(0, numbers * width + distilled % width).float()
        reshard(self._teacher)
        output = model(**student.inputs, use_cache=False)
        logits = output.logits.flatten(0, 1).index_select(0, student.positions).float()
        hard = torch.nn.functional.cross_entropy(logits, student.targets, reduction="none")
        distance = torch.nn.functional.kl_div(
            torch.log_softmax(logits[is_distilled], -1),
            torch.log_softmax(teacher_logits, -1),
            reduction="sum",
            log_target=True,
        )
        hard_sum = (hard * torch.where(is_distilled, 1 - self._weight, 1.0)).sum()
        return hard_sum + self._weight * distance + self._hard.balance(output, inputs, labels)


def pooled(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the last hidden states over each text's tokens: [rows, hidden]."""
    return pool(output.hidden_states[-1].float(), mask, "mean")


def distil_representations(
    total_loss: Callable[[Any, torch.Tensor], torch.Tensor], teacher: PreTrainedModel, weight: float
) -> Callable[[torch.nn.Module, Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """Return the summed loss of a pass of a classifier: (1 - weight) times its own + weight times the summed
    distance (1 - cosine) of each row's pooled representation from the base model's, once for each label that
    the row learns from, since the sum is divided by these.
    """

    def total(
        model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            teacher_vectors = pooled(teacher(**inputs, output_hidden_states=True), inputs["attention_mask"])
        reshard(teacher)
        output = model(**inputs, output_hidden_states=True)
        distance = 1 - torch.nn.functional.cosine_similarity(
            pooled(output, inputs["attention_mask"]), teacher_vectors, dim=-1
        )
        num_learned = (labels.reshape(len(labels), -1) != IGNORED).sum(1)
        return (1 - weight) * total_loss(output, labels) + weight * (distance * num_learned).sum()

    return total
