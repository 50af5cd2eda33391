"""Packing probe: models that keep documents of a row apart pass, those that let them see one another
do not.
"""

from copy import deepcopy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from fullft_assets.errors import SettingsError
from fullft_assets.models.documents import attend_apart_where_equal, probe, takes_bounds

pytestmark = pytest.mark.numeric

SMALL = {
    "vocab_size": 96,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
APART = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "gpt2": GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=2, n_positions=128),
}
LEAKING = {
    "opt": OPTConfig(
        vocab_size=96,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        word_embed_proj_dim=16,
        dropout=0.0,
    ),
    "gpt_oss": GptOssConfig(**SMALL, num_local_experts=4),
    "lfm2": Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "bloom": BloomConfig(vocab_size=96, hidden_size=16, n_layer=2, n_head=2),
    "mamba": MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=4),
}


def build(config: PreTrainedConfig, **options: object) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        # A model's configuration says which attention it has: another test may choose one.
        return AutoModelForCausalLM.from_config(deepcopy(config), **options)


@pytest.mark.parametrize("name", APART)
def test_models_that_keep_documents_apart_pass(name: str) -> None:
    found = probe(build(APART[name]), 64)
    assert found.is_isolated
    assert max(found.logit_change, found.gradient_change) < 1e-7 and found.difference_from_alone < 1e-5
    assert f"documents that share a row of {name} do not move one another" in found.reason


@pytest.mark.parametrize("name", LEAKING)
def test_models_that_leak_are_found(name: str) -> None:
    found = probe(build(LEAKING[name]), 64)
    assert not found.is_isolated and name in found.reason


def test_a_model_that_changes_with_the_longest_document_is_found() -> None:
    """Phi-3's rotary factors are others for all documents of a batch as soon as one is long."""
    config = Phi3Config(
        **{name: value for name, value in SMALL.items() if name != "head_dim"},
        original_max_position_embeddings=24,
        rope_parameters={
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [8.0] * 4,
            "rope_theta": 10_000.0,
            "original_max_position_embeddings": 24,
        },
        pad_token_id=0,
    )
    assert not probe(build(config), 64).is_isolated
    assert probe(build(config), 24).is_isolated, "no document is long"


def test_a_model_that_sees_the_future_is_refused() -> None:
    bert = BertConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(SettingsError, match=r"^base_model: bert sees the tokens .*Llama$"):
        probe(build(bert), 64)


class BlindToPositions(torch.nn.Module):
    """Passes everything on but the restarts: what a model does whose own code counts positions."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.inner = model
        self.config, self.device = model.config, model.device
        self.get_input_embeddings = model.get_input_embeddings

    def forward(self, input_ids, position_ids, use_cache):
        return self.inner(input_ids=input_ids, position_ids=self.positions(position_ids), use_cache=use_cache)

    def positions(self, position_ids):
        return torch.arange(position_ids.shape[1]).expand_as(position_ids)


def test_lost_position_ids_are_found() -> None:
    assert not probe(BlindToPositions(build(APART["llama"])), 64).is_isolated


def test_document_must_be_what_it_is_alone() -> None:
    """Rotary positions are relative: GPT-2's absolute ones show it."""
    inner = build(APART["gpt2"])
    mask = torch.block_diag(*[torch.ones(16, 16).tril()] * 3).bool()[None, None]

    class Apart(BlindToPositions):
        def forward(self, input_ids, position_ids, use_cache):
            allowed = mask[..., : input_ids.shape[1], : input_ids.shape[1]].expand(len(input_ids), -1, -1, -1)
            return self.inner(
                input_ids=input_ids,
                position_ids=self.positions(position_ids),
                attention_mask=allowed,
                use_cache=use_cache,
            )

    found = probe(Apart(inner), 64)
    assert (
        not found.is_isolated
        and max(found.logit_change, found.gradient_change) == 0 < found.difference_from_alone
    )


class _LeakingBackward(torch.autograd.Function):
    """Hands on what it gets; its gradient hears of the whole row, as a kernel's backward pass of its own
    might.
    """

    @staticmethod
    def forward(context, hidden):
        context.save_for_backward(hidden)
        return hidden.clone()

    @staticmethod
    def backward(context, gradient):
        (hidden,) = context.saved_tensors
        return gradient * (1 + hidden.mean(1, keepdim=True))


def test_gradients_are_probed_beside_logits() -> None:
    model = build(APART["llama"])
    model.model.layers[0].register_forward_hook(lambda module, given, output: _LeakingBackward.apply(output))
    found = probe(model, 64)
    assert not found.is_isolated
    assert found.logit_change == 0
    assert found.gradient_change > 1e-3


def test_probe_leaves_the_model_as_it_was() -> None:
    model = build(AutoConfig.for_model("llama", **SMALL, attention_dropout=0.5)).train()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert probe(model, 64).is_isolated  # dropout is off meanwhile
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    ) and torch.equal(state, torch.random.get_rng_state())


def test_changes_that_are_not_numbers_fail() -> None:
    model = build(APART["llama"])
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert not probe(model, 64).is_isolated


def test_a_window_that_only_a_mask_has_is_kept() -> None:
    """PhiMoE's layers tell their attention nothing of the window, which is in the mask that it builds."""
    config = PhimoeConfig(
        **{name: value for name, value in SMALL.items() if name != "head_dim"},
        sliding_window=5,
        num_local_experts=4,
    )
    windowed, plain = build(config), build(APART["llama"])
    for model in (windowed, plain):
        attend_apart_where_equal(model, 64)
    assert (takes_bounds(windowed), takes_bounds(plain)) == (False, True)


def test_code_of_others_that_takes_no_bounds_is_told_none() -> None:
    model = build(APART["llama"])
    forward = type(model).forward

    class Narrow(type(model)):
        def forward(self, input_ids, position_ids=None, use_cache=None):
            return forward(self, input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    model.__class__ = Narrow
    attend_apart_where_equal(model, 64)
    assert not takes_bounds(model) and probe(model, 64).is_isolated
