"""Attention within the documents of packed rows: each of its ways against a forward pass a document."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention
from transformers import Gemma2Config, Llama4TextConfig, MistralConfig, PreTrainedConfig

from fullft_assets.models import documents
from fullft_assets.models.token_loss import TokenLoss
from fullft_assets.training import feed
from tests.optimizer_steps import gradients
from tests.test_isolation import APART, LEAKING, SMALL, build
from tests.test_packed import alone, training

pytestmark = pytest.mark.numeric

#: Sliding windows; capped scores; a sink in each head; chunks of a document.
KINDS = {
    **APART,
    "opt": LEAKING["opt"],
    "mistral": MistralConfig(**SMALL, sliding_window=5),
    "gemma2": Gemma2Config(**SMALL, sliding_window=5, query_pre_attn_scalar=8, attn_logit_softcapping=0.5),
    "gpt_oss": LEAKING["gpt_oss"],
    "llama4_text": Llama4TextConfig(
        **SMALL, num_local_experts=2, intermediate_size_mlp=32, attention_chunk_size=7, pad_token_id=0
    ),
}
#: Documents of 9, 1 and 6 tokens, and of 16.
ROWS = np.stack([np.concatenate([np.arange(9), np.arange(1), np.arange(6)]), np.arange(16)])


@pytest.mark.parametrize("name", KINDS)
def test_packed_rows_have_the_gradients_of_documents_alone(name: str) -> None:
    config: PreTrainedConfig = KINDS[name]
    data = training(12, marked=True)
    # Without GPT-2's dropout.
    expected = alone(build(config).eval(), data)
    model = build(config).eval()
    documents.attend_apart(model)
    assert documents.takes_bounds(model) and documents.probe(model, 24).is_isolated
    batches = list(feed.packed(feed.Pieces(data), 2, 1, 1, 0).batches())
    loss = TokenLoss(model, feed.first_tokens(batches[0], 8))
    for batch in batches:
        loss.total(model, batch, batch.pop("labels")).backward()
    found = gradients(model) / int(feed.Pieces(data).num_predicted.sum())
    assert (found - expected).norm() / expected.norm() < 1e-5


def states(heads: int) -> torch.Tensor:
    return torch.randn(2, heads, 16, 8, generator=torch.Generator().manual_seed(heads))


@pytest.mark.parametrize("window", [None, 4])
def test_kernels_for_any_length_are_given_the_bounds(window: int | None, monkeypatch) -> None:
    """No GPU takes part: in place of the kernel each document is computed by itself."""

    def varlen_attn(query, key, value, *, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size, enable_gqa):
        assert max_q == max_k == 16
        assert enable_gqa
        assert window_size[1] == 0
        assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32
        results = []
        for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            place = torch.arange(end - begin)
            gap = place[:, None] - place
            mask = (gap >= 0) & ((gap <= window_size[0]) | (window_size[0] < 0))
            parts = [each[begin:end].transpose(0, 1) for each in (query, key, value)]
            results.append(
                functional.scaled_dot_product_attention(*parts, mask, scale=scale, enable_gqa=True).transpose(
                    0, 1
                )
            )
        return torch.cat(results)

    monkeypatch.setattr(documents, "varlen_attn", varlen_attn)
    told = documents.bounds(ROWS)
    begins, numbers = told["cu_seq_lens_q"], told["seq_idx"]
    query, key, value = states(4), states(2), states(1).expand(-1, 2, -1, -1)
    found = documents._by_kernel(query, key, value, begins, window, 0.3)
    mask = documents._mask(begins, numbers, window, None)
    assert torch.allclose(found, documents._dense(query, key, value, mask, 0.3, 0.0, None, None), atol=1e-6)


@pytest.mark.parametrize(("window", "chunk"), [(None, None), (4, None), (None, 3)])
def test_blocks_of_flex_attention_are_those_of_the_mask(window: int | None, chunk: int | None) -> None:
    told = documents.bounds(ROWS)
    told = (told["cu_seq_lens_q"], told["seq_idx"], window, chunk)
    query, key, value = states(2), states(3)[:, :2], states(4)[:, 2:]
    found = flex_attention(query, key, value, block_mask=documents._block_mask(*told))
    expected = documents._dense(query, key, value, documents._mask(*told), None, 0.0, None, None)
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-6)
