"""Tiny configurations of the families of language models that people fine-tune, by name: (model type,
options).
"""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "shared_intermediate_size": 32,
}
_PICTURES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_PICTURES: dict[str, Any] = {
    "hidden_size": 32,
    "depth": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 32,
}
_LLAMA_PICTURES: dict[str, Any] = {
    **_PICTURES,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
_SLIDING: dict[str, Any] = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500_000.0,
}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 24,
    "rope_theta": 10_000.0,
}
_GEMMA3N: dict[str, Any] = {
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    "altup_num_inputs": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "activation_sparsity_pattern": [0.0, 0.0],
}
_GEMMA4: dict[str, Any] = {
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
_LLAMA4: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 64,
    "attention_chunk_size": 32,
    "no_rope_layer_interval": 2,
    "interleave_moe_layer_step": 1,
}
_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "dropout": 0.0,
}
_BIDIRECTIONAL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def _text(**options: Any) -> dict[str, Any]:
    return {**_SMALL, **options}


def _with_pictures(text: dict[str, Any], pictures: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": text, "vision_config": pictures}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _text(rope_parameters=_LLAMA3_ROPE)),
    "llama4, text": ("llama4_text", _text(**_LLAMA4)),
    "llama4": ("llama4", _with_pictures(_text(**_LLAMA4), _LLAMA_PICTURES)),
    "qwen2": ("qwen2", _text()),
    "qwen3": ("qwen3", _text()),
    "qwen3, experts": ("qwen3_moe", _text(**_EXPERTS)),
    "qwen3-next": ("qwen3_next", _text(**_EXPERTS, **_DELTA, shared_expert_intermediate_size=32)),
    "qwen3.5, text": ("qwen3_5_text", _text(**_DELTA)),
    "qwen3.5": ("qwen3_5", _with_pictures(_text(**_DELTA), _QWEN_PICTURES)),
    "qwen3.5, experts": (
        "qwen3_5_moe_text",
        _text(**_EXPERTS, **_DELTA, shared_expert_intermediate_size=32),
    ),
    "qwen3-vl": ("qwen3_vl", _with_pictures(_text(), _QWEN_PICTURES)),
    "mistral": ("mistral", _text(sliding_window=16)),
    "ministral3": ("ministral3", _text()),
    "mistral3": (
        "mistral3",
        _with_pictures(
            {"model_type": "ministral3", **_text()}, {"model_type": "pixtral", **_PICTURES, "head_dim": 16}
        ),
    ),
    "mistral4": ("mistral4", _text(**{**_LATENT, "head_dim": 16})),
    "mixtral": ("mixtral", _text(num_local_experts=4)),
    "gemma2": ("gemma2", _text(sliding_window=16)),
    "gemma3, text": ("gemma3_text", _text(**_SLIDING)),
    "gemma3": ("gemma3", _with_pictures(_text(sliding_window=16), _PICTURES)),
    "gemma3n, text": ("gemma3n_text", _text(**_GEMMA3N)),
    "gemma4, text": ("gemma4_text", _text(**_GEMMA4)),
    "gemma4": ("gemma4", {"text_config": _text(**_GEMMA4)}),
    "phi3": ("phi3", _text()),
    "phi3, longrope": (
        "phi3",
        _text(original_max_position_embeddings=24, rope_parameters=_LONGROPE),
    ),
    "gpt-oss": ("gpt_oss", _text(num_local_experts=4, sliding_window=16)),
    "olmo2": ("olmo2", _text()),
    "olmo3": ("olmo3", _text(sliding_window=16)),
    "olmo, hybrid": ("olmo_hybrid", _text()),
    "granite": ("granite", _text(logits_scaling=8.0, embedding_multiplier=12.0)),
    "granite4, hybrid": (
        "granitemoehybrid",
        _text(**_MAMBA, num_local_experts=4, layer_types=["mamba", "attention"]),
    ),
    "granite4, dense": (
        "granitemoehybrid",
        _text(
            **_MAMBA,
            num_local_experts=0,
            layer_types=["attention", "attention"],
            position_embedding_type="rope",
        ),
    ),
    "glm4": ("glm4", _text()),
    "glm4, experts": ("glm4_moe", _text(**_ROUTED, first_k_dense_replace=1)),
    "glm4, lite": ("glm4_moe_lite", _text(**_ROUTED, **_LATENT)),
    "deepseek-v3": (
        "deepseek_v3",
        _text(**_ROUTED, **_LATENT, first_k_dense_replace=1, n_group=1, topk_group=1),
    ),
    "smollm3": ("smollm3", _text(no_rope_layer_interval=2)),
    "lfm2": ("lfm2", _text(layer_types=["conv", "full_attention"])),
    "falcon-h1": (
        "falcon_h1",
        _text(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1),
    ),
    "nemotron-h": (
        "nemotron_h",
        _text(
            hybrid_override_pattern="M*", mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1
        ),
    ),
    "apertus": ("apertus", _text()),
    "seed-oss": ("seed_oss", _text(residual_dropout=0.0, attention_dropout=0.0)),
    "exaone4": ("exaone4", _text(sliding_window=16)),
    "minimax-m2": ("minimax_m2", _text(num_local_experts=4, num_experts_per_tok=2)),
    "ernie4.5": ("ernie4_5", _text()),
    "hunyuan, dense": ("hunyuan_v1_dense", _text()),
    "modernbert, decoder": ("modernbert-decoder", _text()),
    "gpt-neox": ("gpt_neox", _text()),
    "gpt2": (
        "gpt2",
        {
            **{name: _SMALL[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 256,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "t5": (
        "t5",
        {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "bart": ("bart", _SEQ2SEQ),
    "whisper": ("whisper", _SEQ2SEQ),
    "bert": ("bert", _BIDIRECTIONAL),
    "modernbert": ("modernbert", _text(cls_token_id=1, sep_token_id=2)),
}
