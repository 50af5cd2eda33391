"""Attention of packed rows, in which each document attends to itself alone.

It is registered with transformers under `NAME`, and gets the bounds of documents with each forward pass: the
host never waits for the device, and on a GPU there is no mask of a complete row. There it computes by
torch's kernels for sequences of any length (flash attention) in half precision, and by FlexAttention what
they lack: capped scores, sinks, chunks, fp32. Elsewhere it is torch's own attention with a mask, the same for
all layers.

Most architectures keep the documents of a row apart then; recurrent ones and some attention kernels do not,
and nothing in the loss would show it. So each model is tested before it is trained: while the neighbours of a
document change, and one is part of a document as long as a row, its logits and its gradients must not, and
they must be the same as those of the document alone in a row.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fullft_assets.errors import SettingsError
from fullft_assets.extras import require_names
from fullft_assets.models import loading, precision as precisions
from fullft_assets.models.hardware import has_flash_attention
from fullft_assets.models.inference import PLANNED_DEVICE, evaluating, is_sharded

#: Of the attention function.
NAME = "documents"
#: Arguments of a forward pass that tell where documents begin, as transformers' own collator names them.
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
#: Sizes of a head that flash attention computes.
_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
#: Masks that are kept: one for each kind of layer of a pass, and of the pass before.
_KEPT_MASKS = 4
#: Maximum change of a document's logits or gradients as its neighbours change, relative to the largest one.
#: Sums are taken in the same order both times, except by mixtures of experts (1e-8 in fp32). The weakest leak
#: seen, of a convolution with random weights, is 8e-5. Weights in bf16 are tested in it.
_ALLOWED_CHANGE: dict[precisions.Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}
#: Maximum difference from the document alone, whose sums are taken in another order, on GPUs in TF32.
_ALLOWED_DIFFERENCE: dict[precisions.Precision, float] = {"fp32": 5e-3, "bf16": 5e-2}
#: Compared elements of a weight's gradient.
_COMPARED_ELEMENTS = 2**12
#: Tokens of a probed document, where a row has room for three of them.
_DOCUMENT_TOKENS = 16
require_names(
    PreTrainedModel,
    (
        "set_attn_implementation",
        "_can_set_attn_implementation",
        "_keys_to_ignore_on_load_missing",
        "_init_weights",
    ),
)


def attend_apart(model: PreTrainedModel) -> None:
    """Make the layers of a model use this attention function; a model that does not look its function up by
    name, or takes no `bounds`, stays as it is.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if (
        any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        and model._can_set_attn_implementation()
    ):
        model.set_attn_implementation(NAME)


def takes_bounds(model: torch.nn.Module) -> bool:
    """Return whether a model, perhaps wrapped, takes `bounds`."""
    config: Any = getattr(model, "module", model).config
    return config.get_text_config()._attn_implementation == NAME


def bounds(positions: np.ndarray) -> dict[str, Any]:
    """Return the arguments of a forward pass that tell where the documents of rows begin.

    Args:
        positions: [rows, tokens] position of each token in its document.
    """
    is_first = positions == 0
    begins = torch.from_numpy(np.append(np.flatnonzero(is_first), positions.size).astype(np.int32))
    numbers = np.cumsum(is_first).astype(np.int32).reshape(positions.shape) - 1
    # As long as a row, and not as the longest document, it is the same in all passes.
    longest = positions.shape[1]
    return dict(zip(BOUNDS, (begins, begins, longest, longest, torch.from_numpy(numbers)), strict=True))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return [rows, tokens, heads, size], the causal attention within documents; a row is one if nothing
    else is told. No weights of it.

    Args:
        query, key, value: [rows, heads, tokens, size]; a few heads of key and value may serve more of query.
        sliding_window: tokens that a token attends to, itself included.
        softcap: bound of the scores.
        s_aux: [heads] score of a sink, which takes attention and has no value.
        cu_seq_lens_q: [documents + 1] first token of each in rows laid end to end.
        seq_idx: [rows, tokens] number of each token's document.
    """
    chunk = _chunk(module)
    is_plain = softcap is None and s_aux is None and chunk is None
    is_causal = getattr(module, "is_causal", True) and attention_mask is None
    if not is_causal or (is_plain and sliding_window is None and seq_idx is None):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout
        )[0], None
    rows, _, tokens, size = query.shape
    # A compiled layer is never planned, and its graph cannot have the question.
    if not torch.compiler.is_compiling() and PLANNED_DEVICE.get() == "cuda":
        return _counted(query, key, value, s_aux), None
    if seq_idx is None or cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device=query.device)
        seq_idx = torch.arange(rows, device=query.device)[:, None].expand(rows, tokens)
    if query.device.type != "cuda":
        return _dense(
            query,
            key,
            value,
            _mask(cu_seq_lens_q, seq_idx, sliding_window, chunk),
            scaling,
            dropout,
            softcap,
            s_aux,
        ), None
    if torch.is_autocast_enabled("cuda"):  # rotated in fp32, queries and keys are no longer in its precision
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (states.to(dtype) for states in (query, key, value))
    is_half = query.dtype != torch.float32 and has_flash_attention()
    if (
        is_plain
        and is_half
        and (size == value.shape[-1] and size <= _LARGEST_HEAD and size % _HEAD_MULTIPLE == 0)
    ):
        return _by_kernel(query, key, value, cu_seq_lens_q, sliding_window, scaling), None
    return (
        flex_attention_forward(
            module,
            query,
            key,
            value,
            _block_mask(cu_seq_lens_q, seq_idx, sliding_window, chunk),
            scaling=scaling,
            softcap=softcap,
            s_aux=s_aux,
        )[0],
        None,
    )


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def _chunk(module: torch.nn.Module) -> int | None:
    """Return the tokens of the parts of a document that attend to themselves alone, of a layer of Llama 4."""
    layer: Any = module
    kinds = getattr(getattr(layer, "config", None), "layer_types", None) or ()
    # A compiled layer that reads its own number would be compiled for each number.
    is_chunked = "chunked_attention" in kinds and kinds[layer.layer_idx] == "chunked_attention"
    return layer.config.attention_chunk_size if is_chunked else None


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    begins: torch.Tensor,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    rows, _, tokens, _ = query.shape
    result = varlen_attn(
        *[states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)],
        cu_seq_q=begins,
        cu_seq_k=begins,
        max_q=tokens,
        max_k=tokens,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(result, torch.Tensor), "no further result is asked for"
    return result.unflatten(0, (rows, tokens))


def _allowed(begins: torch.Tensor, numbers: torch.Tensor, window: int | None, chunk: int | None) -> Any:
    """Return (row, head, token, other token) -> whether the token attends to the other one, for tensors."""
    places = torch.arange(numbers.numel(), device=numbers.device).view(numbers.shape) - begins[numbers]

    def allowed(row: Any, head: Any, token: Any, earlier: Any) -> torch.Tensor:
        result = (numbers[row, token] == numbers[row, earlier]) & (earlier <= token)
        if window is not None:
            result = result & (token - earlier < window)
        if chunk is not None:
            result = result & (places[row, token] // chunk == places[row, earlier] // chunk)
        return result

    return allowed


@lru_cache(_KEPT_MASKS)
def _mask(begins: torch.Tensor, numbers: torch.Tensor, window: int | None, chunk: int | None) -> torch.Tensor:
    """Return [rows, 1, tokens, tokens]."""
    rows, tokens = numbers.shape
    row = torch.arange(rows, device=numbers.device)[:, None, None]
    token = torch.arange(tokens, device=numbers.device)
    return _allowed(begins, numbers, window, chunk)(row, None, token[:, None], token)[:, None]


@lru_cache(_KEPT_MASKS)
def _block_mask(begins: torch.Tensor, numbers: torch.Tensor, window: int | None, chunk: int | None) -> Any:
    rows, tokens = numbers.shape
    return create_block_mask(
        _allowed(begins, numbers, window, chunk), rows, None, tokens, tokens, device=str(numbers.device)
    )


def _counted(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """Return a tensor without values; what is kept for its gradients is as large as what a GPU's kernels
    keep: no scores, no mask, and no key twice.
    """
    size = value.shape[-1]
    # The CPU's kernel that keeps no scores takes values of the size of keys alone.
    largest = max(query.shape[-1], size)
    query, key = (torch.nn.functional.pad(states, (0, largest - states.shape[-1])) for states in (query, key))
    value = torch.nn.functional.pad(value, (0, largest - size))
    result = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[..., :size]
    # Sinks change the result after the kernel, and have a gradient.
    return (result if sinks is None else result + sinks.sum().to(result)).transpose(1, 2).contiguous()


def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    num_groups = query.shape[1] // key.shape[1]
    key, value = (
        states.repeat_interleave(num_groups, 1) if num_groups > 1 else states for states in (key, value)
    )
    if softcap is None and sinks is None:
        return (
            scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scaling)
            .transpose(1, 2)
            .contiguous()
        )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat(
            [scores, sinks.view(1, -1, 1, 1).expand(len(query), -1, scores.shape[2], 1).to(scores.dtype)], -1
        )
    shares = scores.softmax(-1, dtype=torch.float32)[..., : key.shape[2]].to(query.dtype)
    return (torch.nn.functional.dropout(shares, dropout) @ value).transpose(1, 2).contiguous()


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
    vocabulary = loading.input_embeddings(model).num_embeddings
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
    is_half = next(model.parameters()).dtype == torch.bfloat16 or (
        is_sharded(model) and precisions.of_scores(model) != "fp32"
    )
    precision: precisions.Precision = "bf16" if is_half else "fp32"
    try:
        with evaluating(model), precisions.autocast(precision):
            alone = _outputs(model, [[watched]], 0)
            ahead = change([alone[0][:-1]], [_outputs(model, [[with_other_end]], 0)[0][:-1]])
            first, second = (
                _outputs(model, neighbours_of(watched), size, shift) for shift in (0, longest - size)
            )
    except ValueError as error:  # of transformers, where a layer has no kernel for packed rows here
        reason = " ".join(str(error).split())
        return Isolation(False, None, None, None, f"{name} cannot keep documents apart here: {reason}")
    # Not so of a NaN, which says nothing of that.
    if ahead > _ALLOWED_CHANGE[precision]:
        raise SettingsError(
            f"base_model: {name} sees the tokens that it is to predict (a later token moves the logits of"
            f" earlier ones by {ahead:.1e}); give a causal language model such as Llama"
        )
    logits = change(first[:1], second[:1])
    gradients = change(first[1:], second[1:])
    from_alone = max(change(first[:1], alone[:1]), change(first[1:], alone[1:]))
    # Written so that a NaN fails.
    is_isolated = (
        max(logits, gradients) <= _ALLOWED_CHANGE[precision] and from_alone <= _ALLOWED_DIFFERENCE[precision]
    )
    description = f"logits by {logits:.1e}, gradients by {gradients:.1e}; from alone by {from_alone:.1e}"
    verb = "do not move" if is_isolated else "move"
    return Isolation(
        is_isolated,
        logits,
        gradients,
        from_alone,
        f"documents that share a row of {name} {verb} one another ({description})",
    )


def attend_apart_where_equal(model: PreTrainedModel, capacity: int, *, seed: int = 0) -> None:
    """Make a model use this attention function, if the function computes for one document what the model's
    own attention does: some families build a mask of their own, such as a window, and do not pass it to
    another function.

    Args:
        capacity: tokens in a row.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation or "eager"
    attend_apart(model)
    if loading.is_outline(model) or not takes_bounds(model):
        return
    # Past the end of a window.
    reach = max(getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size"))
    longest = getattr(config, "max_position_embeddings", None) or capacity
    size = min(capacity, longest, reach + _DOCUMENT_TOKENS)
    vocabulary = loading.input_embeddings(model).num_embeddings
    ids = torch.randint(
        min(10, vocabulary // 2), vocabulary, (1, size), generator=torch.Generator().manual_seed(seed)
    )
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    is_half = next(model.parameters()).dtype == torch.bfloat16 or precisions.of_scores(model) != "fp32"
    precision: precisions.Precision = "bf16" if is_half else "fp32"
    logits = []
    with evaluating(model), torch.no_grad(), precisions.autocast(precision):
        for attention in (before, NAME):
            model.set_attn_implementation(attention)
            logits.append(model(input_ids=ids.to(model.device), use_cache=False, **last).logits[0, -1:])
    if (
        not _change([logits[0].float()], [logits[1].float()], is_shared=is_sharded(model))
        <= _ALLOWED_DIFFERENCE[precision]
    ):
        model.set_attn_implementation(before)


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
    bounds_of_rows = bounds(positions.numpy()) if takes_bounds(model) else {}
    size = len(rows[0][0])
    positions[:, -size:] += shift
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in {"position_ids": positions, **bounds_of_rows}.items()
    }
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, start : start + size].float()
    return [
        logits.detach(),
        *_gradients(
            torch.nn.functional.cross_entropy(logits[:-1], ids[0, start + 1 : start + size]),
            [weight for weight in model.parameters() if weight.requires_grad],
        ),
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
        gradient = (weight.grad.to_local() if isinstance(weight.grad, DTensor) else weight.grad).flatten()
        weight.grad = None
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
    sizes = torch.stack([max((a - b).abs().max() for a, b in pairs), max(b.abs().max() for _, b in pairs)])
    if is_shared:
        torch.distributed.all_reduce(sizes.nan_to_num_(torch.inf), torch.distributed.ReduceOp.MAX)
    return sizes[0].item() / max(sizes[1].item(), 1e-30)
