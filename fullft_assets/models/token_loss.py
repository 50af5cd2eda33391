"""The loss of language models over the trained tokens alone, and their scores on held-out documents: the same
on the validation rows in training, in the pilot and by the baselines, and on the test rows in the evaluation.

Of a row's tokens only some are trained: not prompts, not the first one of a document, not padding. The output
head and the softmax over the vocabulary, which cost a small model a fifth of its time and most of its memory,
are computed for the trained tokens alone, in parts, with their gradients at once (as in Hsu et al. 2024,
"Liger Kernel", section 3.2), so that logits of a complete batch never exist. Whether a model's head can be
replaced in this way is tested, not assumed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from fullft_assets.models import documents, layers, precision
from fullft_assets.models.document_scores import DocumentScores
from fullft_assets.models.inference import (
    PLANNED_DEVICE,
    collate,
    device,
    evaluating,
    in_batches,
    move,
    scoring,
)
from fullft_assets.models.loading import is_outline
from fullft_assets.progress import Listener

#: Label of a token that is not trained.
IGNORED = -100
#: In a batch: `predicted_positions`, which the host knows and a GPU would have to be asked for.
PREDICTED = "predicted"
#: Tokens of a small forward pass: enough to see what a model does to its logits.
SHOWN_TOKENS = 32
#: In a batch whose packed rows are filled up: [rows, tokens] which tokens are no padding.
IS_TOKEN = "is_token"
#: In a batch, if asked for: [rows, tokens] bool, whether a token belongs to a replayed document.
IS_REPLAYED = "is_replayed"
#: Logits that exist at a time: on a GPU as many as make the additions to the head's gradient cheap.
_CHUNK_ELEMENTS = {"cpu": 2**25, "gpu": 2**28}


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
        head = model.get_output_embeddings()
        assert head is not None, f"{type(model).__name__} has no output head"
        self.head = cast(nn.Linear, head)
        # FSDP2 makes a subclass of its class.
        is_plain = type(self.head).forward is nn.Linear.forward and "forward" not in vars(self.head)
        self.is_fused = is_plain and self._returns_logits_of_head(model, inputs)
        config = model.config.get_text_config()
        self._balance = (
            getattr(config, "router_aux_loss_coef", 0.0)
            if getattr(config, "output_router_logits", False)
            else 0.0
        )
        self._experts_a_token = layers.experts_a_token(config)

    def total(self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Return the sum over all trained tokens, with the routers' `balance`, in fp32, differentiable.

        Args:
            inputs: may have their `predicted_positions`; else the host waits for the device.
            labels: [rows, tokens] the token ids of the rows, IGNORED where not trained. The first token of a
                row is never trained.
        """
        prediction = predictions(model, inputs, labels)
        with self._summing(prediction) if self.is_fused else nullcontext():
            output = model(**prediction.inputs, use_cache=False)
        loss = output.logits.sum() if self.is_fused else _summed(output.logits, prediction)
        return loss + self.balance(output, inputs, labels)

    def balance(self, output: Any, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor | float:
        """Return the auxiliary loss of a mixture's routers (Fedus et al. 2021, arXiv:2101.03961), once for
        each trained token, since the sum is divided by these: 0 where the model's configuration has none, or
        does not say `output_router_logits`.

        Args:
            output: of the pass.
        """
        routed = getattr(output, "router_logits", None) if self._balance else None
        if not routed:
            return 0.0
        mask = inputs.get("attention_mask", inputs.get(IS_TOKEN))
        loss = load_balancing_loss_func(routed, routed[0].shape[-1], self._experts_a_token, mask)
        return self._balance * (labels != IGNORED).sum() * loss

    @torch.no_grad()
    def of_tokens(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy in fp32 of each trained token, row by row, and whether the model ranked it
        first: [tokens] both.
        """
        is_target = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][is_target]
        heads: list[tuple[torch.Tensor, torch.Tensor]] = []
        head = self.head

        def score_in_parts(hidden: torch.Tensor) -> torch.Tensor:
            states = hidden[:, :-1][is_target]
            size = _tokens_of_part(head.weight)
            for start in range(0, len(states), size):
                heads.append(
                    _token_scores(
                        nn.functional.linear(states[start : start + size], head.weight, head.bias),
                        targets[start : start + size],
                    )
                )
            return hidden.new_zeros((1, 1, 1))

        if not self.is_fused:
            return _token_scores(model(**inputs, use_cache=False).logits[:, :-1][is_target], targets)
        with replaced_forward(head, score_in_parts):
            model(**inputs, use_cache=False)
        losses, is_first = zip(*heads, strict=True)
        return torch.cat(losses), torch.cat(is_first)

    def _summing(self, prediction: "Predictions") -> AbstractContextManager[None]:
        """Return the context in which the head returns the summed loss of a pass."""
        head = self.head

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            return LinearCrossEntropy.apply(
                hidden.flatten(0, 1).index_select(0, prediction.positions),
                head.weight,
                head.bias,
                prediction.targets,
            )

        # A copy: FSDP warns about views, whose hooks an operation in place would lose.
        return replaced_forward(head, lambda hidden: loss_of(hidden).reshape(1, 1, 1).clone())

    @torch.no_grad()
    def _returns_logits_of_head(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> bool:
        of_head: list[Any] = []
        hook = self.head.register_forward_hook(lambda module, args, logits: of_head.append(logits))
        try:
            logits = model(**inputs, use_cache=False).logits
        finally:
            hook.remove()
        # Without weights it has no values to compare.
        return len(of_head) == 1 and (
            of_head[0] is logits if is_outline(model) else torch.equal(of_head[0], logits)
        )


def predicted_positions(labels: np.ndarray) -> torch.Tensor:
    """Return the positions [predictions] of the tokens whose next one is trained, in rows laid end to end."""
    return torch.from_numpy(np.flatnonzero(np.pad(labels[:, 1:] != IGNORED, ((0, 0), (0, 1)))))


class Predictions(NamedTuple):
    """What a model predicts in a batch: the inputs that it takes, their `predicted_positions`, and the token
    that follows each.
    """

    inputs: dict[str, Any]
    positions: torch.Tensor
    targets: torch.Tensor


def predictions(model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> Predictions:
    """Return what the model predicts in a batch."""
    positions = inputs.get(PREDICTED)
    excluded = {
        PREDICTED,
        IS_TOKEN,
        IS_REPLAYED,
        *(() if documents.takes_bounds(model) else documents.BOUNDS),
    }
    inputs = {name: value for name, value in inputs.items() if name not in excluded}
    if positions is None:
        positions = predicted_positions(labels.numpy(force=True)).to(labels.device)
    return Predictions(inputs, positions, labels.flatten().index_select(0, positions + 1))


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


def _token_scores(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(
        -1
    ) == targets


def plain(model: nn.Module, inputs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Return the same sum, computed from all of the model's own logits."""
    prediction = predictions(model, inputs, labels)
    return _summed(model(**prediction.inputs, use_cache=False).logits, prediction)


def _summed(logits: torch.Tensor, prediction: Predictions) -> torch.Tensor:
    logits = logits.flatten(0, 1).index_select(0, prediction.positions)
    return nn.functional.cross_entropy(logits.float(), prediction.targets, reduction="sum")


class LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of the logits `hidden @ weight.T + bias`; the forward pass computes its gradients,
    a part of the tokens at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return a scalar in fp32.

        Args:
            ctx: takes what backward needs.
            hidden: [tokens, hidden].
            weight: [vocabulary, hidden].
            bias: [vocabulary] or None.
            targets: [tokens] token ids.
        """
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        kind = weight.device.type
        # A head computes in autocast's format, else in that of its weight.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            states = hidden.to(dtype)
            matrix = weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            size = _tokens_of_part(weight)
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                loss, slope = _cross_entropy(
                    nn.functional.linear(states[part], matrix, offset), targets[part]
                )
                total += loss
                if grad_bias is not None:
                    grad_bias += slope.sum(0, dtype=torch.float32)
                if grad_hidden is not None:
                    grad_hidden[part] = slope @ matrix
                if grad_weight is not None:
                    grad_weight += slope.T @ states[part]
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


def _tokens_of_part(weight: torch.Tensor) -> int:
    kind = PLANNED_DEVICE.get() or weight.device.type
    return max(1, _CHUNK_ELEMENTS["cpu" if kind == "cpu" else "gpu"] // len(weight))


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy in fp32, and its gradient by the logits, rounded to their format.

    Args:
        logits: [tokens, vocabulary]; they become the gradient.
        targets: [tokens] token ids.
    """
    answers = targets[:, None]
    scores = torch.log_softmax(logits, -1, dtype=torch.float32)
    losses = scores.gather(1, answers)
    # In place of the logits: another table of that size would take memory and time.
    slope = torch.exp(scores, out=logits)
    return -losses.sum(), slope.scatter_(1, answers, (losses.exp() - 1).to(slope.dtype))


#: Fills rows up after their last token, which no trained token attends to.
_PADDING = 0


def score_documents(
    model: PreTrainedModel,
    chunks: Sequence[Sequence[Sequence[int]]],
    marks: Sequence[Sequence[Sequence[int]]] | None,
    *,
    progress: Listener | None = None,
) -> DocumentScores:
    """Score a causal language model on documents; the model's mode is restored.

    A token is predicted from those before it in its chunk, so the first one of a chunk never is. Each
    chunk has a row of its own, longest first, so packing does not matter.

    Args:
        marks: aligned with the chunks, 1 where a token is trained; None: all are.
        progress: reports how many chunks are done; asked between batches whether to stop.
    """
    num_tokens = np.zeros(len(chunks), np.int64)
    loss = np.zeros(len(chunks))
    num_right = np.zeros(len(chunks), np.int64)
    rows = _rows(chunks, marks)
    if not rows:
        return DocumentScores(num_tokens, loss, num_right)
    move(model)

    def forward(start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the document, the loss and whether it was ranked first of each trained token."""
        batch = rows[start:end]
        inputs = _inputs([row.ids for row in batch])
        labels = _labels(batch, inputs["input_ids"])
        losses, is_first = token_loss.of_tokens(model, inputs, labels)
        return (
            np.repeat([row.document for row in batch], (labels[:, 1:] != IGNORED).sum(1).cpu().numpy()),
            losses.cpu().double().numpy(),
            is_first.long().cpu().numpy(),
        )

    with evaluating(model), torch.no_grad(), precision.autocast(precision.of_scores(model)), scoring():
        token_loss = TokenLoss(model, _inputs([rows[0].ids[:SHOWN_TOKENS]]))
        for documents, losses, is_first in in_batches(
            [len(row.ids) for row in rows],
            forward,
            model,
            progress,
            # Of a pass that is not fused all logits are there at a time.
            most_tokens=None if token_loss.is_fused else _tokens_of_part(token_loss.head.weight),
        ):
            np.add.at(num_tokens, documents, 1)
            np.add.at(loss, documents, losses)
            np.add.at(num_right, documents, is_first)
    return DocumentScores(num_tokens, np.where(np.isfinite(loss), loss, np.nan), num_right)


def _inputs(ids: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    return {name: value.to(device()) for name, value in collate(ids, _PADDING).items()}


@dataclass(frozen=True)
class _Row:
    document: int
    ids: Sequence[int]
    marks: Sequence[int] | None


def _rows(
    chunks: Sequence[Sequence[Sequence[int]]], marks: Sequence[Sequence[Sequence[int]]] | None
) -> list[_Row]:
    """Return the chunks that have a token to predict, longest first: a batch that does not fit fails at
    once.
    """
    rows = [
        _Row(number, chunk, None if marks is None else marks[number][position])
        for number, document in enumerate(chunks)
        for position, chunk in enumerate(document)
    ]
    rows = [row for row in rows if len(row.ids) > 1 and (row.marks is None or 1 in row.marks[1:])]
    return sorted(rows, key=lambda row: -len(row.ids))


def _labels(batch: Sequence[_Row], ids: torch.Tensor) -> torch.Tensor:
    """Return [rows, tokens]: the token's id where it is trained, else IGNORED."""
    is_trained = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(batch):
        is_trained[number, : len(row.ids)] = True if row.marks is None else torch.tensor(row.marks) == 1
    return torch.where(is_trained.to(ids.device), ids, IGNORED)
