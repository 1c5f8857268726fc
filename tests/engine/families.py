"""Tiny models of many families, one for each kind of cache, with random weights and the embedded model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.models import write_random

_COMMON: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "vocab_size": 737,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip

_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "moe_intermediate_size": 32, "norm_topk_prob": True,
    },
    "deepseek_v3": {
        "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 8, "moe_intermediate_size": 32,
        "n_routed_experts": 2, "first_k_dense_replace": 2,
    },
    "gemma3_text": {
        "num_hidden_layers": 4, "sliding_window": 32, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16,
    },
    "gpt_oss": {
        "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 20, "rope_scaling": None,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3_next": {
        "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
        "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "num_experts": 0, "num_experts_per_tok": 0,
        "decoder_sparse_step": 1, "shared_expert_intermediate_size": 0, "mlp_only_layers": [],
        "moe_intermediate_size": 0, "partial_rotary_factor": 0.5, "full_attention_interval": 2,
    },
    "mamba": {
        "state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4,
    },
    "mamba2": {
        "num_heads": 4, "head_dim": 32, "intermediate_size": 128, "state_size": 16, "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4, "n_groups": 1, "use_bias": False, "use_conv_bias": True, "time_step_limit": [0.001, 100.0],
        "time_step_rank": "auto",
    },
    "falcon_h1": {
        "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_d_head": 16, "mamba_n_heads": 4, "mamba_chunk_size": 32,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3, "attention_bias": False, "conv1d_width": 4, "logits_soft_cap": 30.0,
        "num_key_value_heads": 1, "attention_window_size": 32, "block_types": ["recurrent", "recurrent", "attention"],
    },
    "baichuan_m1": {
        "sliding_window": 32, "sliding_window_layers": [1], "conv_window": 2, "num_swa_attention_heads": 4,
        "num_swa_key_value_heads": 2,
    },
}  # fmt: skip


class Family(str):
    """A family's name, and a dtype if not float32: `qwen3/bfloat16`."""

    @property
    def model_type(self) -> str:
        """The family."""
        return self.partition("/")[0]

    @property
    def dtype(self) -> str:
        """The type of its weights."""
        return self.partition("/")[2] or "float32"


class _Kinds(NamedTuple):
    exact: list[str]
    close: list[str]


_PLAIN = ["llama", "llama/bfloat16", "qwen3", "qwen3/bfloat16", "qwen3_moe", "deepseek_v3"]
_OTHER = [
    "gemma3_text", "gemma3_text/bfloat16", "gpt_oss", "qwen3_next", "qwen3_next/bfloat16", "mamba", "mamba2",
    "falcon_h1", "recurrent_gemma", "baichuan_m1",
]  # fmt: skip

FAMILIES = [*_PLAIN, *_OTHER]
CHECKPOINTS = frozenset(_OTHER)
"""Those that go on from checkpoints and windows that were kept, not from any block."""

EXACT = frozenset(_PLAIN) - {"deepseek_v3"} | {"qwen3_next"}
"""
Those whose warm answers are cold ones bit by bit. Latent attention multiplies in another order when it has one token:
what was decoded is not what prefill computes.
"""


def write(folder: Path, family: Family) -> Path:
    """Write a model of a family and return its directory."""
    config = {"model_type": family.model_type, **_COMMON, **_CONFIGS[family.model_type]}
    return write_random(folder / family.replace("/", "-"), config, seed=7, dtype=family.dtype)
