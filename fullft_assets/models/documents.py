"""Attention of packed rows, in which each document attends to itself alone.

It is registered with transformers under `NAME`, and gets the bounds of documents with each forward pass: the
host never waits for the device, and on a GPU there is no mask of a complete row. There it computes by
torch's kernels for sequences of any length (flash attention) in half precision, and by FlexAttention what
they lack: capped scores, sinks, chunks, fp32. Elsewhere it is torch's own attention with a mask, the same for
all layers.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fullft_assets.models.hardware import has_flash_attention
from fullft_assets.models.loading import require_names

#: Of the attention function.
NAME = "documents"
#: Arguments of a forward pass that tell where documents begin, as transformers' own collator names them.
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
#: Sizes of a head that flash attention computes.
_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
#: Masks that are kept: one for each kind of layer of a pass, and of the pass before.
_KEPT_MASKS = 4
require_names(PreTrainedModel, ("set_attn_implementation", "_can_set_attn_implementation"))


def attend_apart(model: PreTrainedModel) -> None:
    """Have a model's layers attend by this function; one that does not look its function up, or takes no
    `bounds`, stays as it is.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    has_keywords = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    if has_keywords and model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)


def takes_bounds(model: nn.Module) -> bool:
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
    module: nn.Module,
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
        options = {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    rows, _, tokens, size = query.shape
    if seq_idx is None or cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device=query.device)
        seq_idx = torch.arange(rows, device=query.device)[:, None].expand(rows, tokens)
    if query.device.type != "cuda":
        mask = _mask(cu_seq_lens_q, seq_idx, sliding_window, chunk)
        return _dense(query, key, value, mask, scaling, dropout, softcap, s_aux), None
    if torch.is_autocast_enabled("cuda"):  # rotated in fp32, queries and keys are no longer in its precision
        chosen = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(chosen), key.to(chosen), value.to(chosen)
    is_half = query.dtype != torch.float32 and has_flash_attention()
    has_kernel = size == value.shape[-1] and size <= _LARGEST_HEAD and size % _HEAD_MULTIPLE == 0
    if is_plain and is_half and has_kernel:
        return _by_kernel(query, key, value, cu_seq_lens_q, sliding_window, scaling), None
    blocks = _block_mask(cu_seq_lens_q, seq_idx, sliding_window, chunk)
    return (
        flex_attention_forward(
            module, query, key, value, blocks, scaling=scaling, softcap=softcap, s_aux=s_aux
        )[0],
        None,
    )


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def _chunk(module: nn.Module) -> int | None:
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
    rows, tokens = query.shape[0], query.shape[2]
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    result = varlen_attn(
        *flat,
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
    allowed = _allowed(begins, numbers, window, chunk)
    return create_block_mask(allowed, rows, None, tokens, tokens, device=str(numbers.device))


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
    key, value = (each.repeat_interleave(num_groups, 1) if num_groups > 1 else each for each in (key, value))
    if softcap is None and sinks is None:
        result = functional.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, scale=scaling
        )
        return result.transpose(1, 2).contiguous()
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        of_sinks = sinks.view(1, -1, 1, 1).expand(len(query), -1, scores.shape[2], 1)
        scores = torch.cat([scores, of_sinks.to(scores.dtype)], -1)
    shares = scores.softmax(-1, dtype=torch.float32)[..., : key.shape[2]].to(query.dtype)
    return (functional.dropout(shares, dropout) @ value).transpose(1, 2).contiguous()
