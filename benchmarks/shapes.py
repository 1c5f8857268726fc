"""Writes models with random weights in real shapes, built by mlx-lm's classes. Benchmarks measure work, not answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from benchmarks import words

_COMMON: dict[str, Any] = {"rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "tie_word_embeddings": True}
_QWEN3: dict[str, Any] = {**_COMMON, "model_type": "qwen3", "rope_theta": 1e6}
_SMALL: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 768, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "small": {**_QWEN3, **_SMALL},
    # The shape of Qwen/Qwen3-0.6B, unchanged.
    "0.6b": {
        **_QWEN3, "hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    # The shape of Qwen/Qwen3-1.7B, and its dtype: what a GPU is measured with.
    "1.7b": {
        **_QWEN3, "hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "dtype": "bfloat16",
    },
    # Qwen3-Next, narrower, and dense instead of experts: three layers with recurrent state, then one of attention.
    "hybrid": {
        **_COMMON, **_SMALL, "model_type": "qwen3_next", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
        "full_attention_interval": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "num_experts": 0,
        "num_experts_per_tok": 0, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 0,
        "mlp_only_layers": [], "moe_intermediate_size": 0,
    },
    # The same with an MTP head, whose guesses are wrong as its weights are random.
    "hybrid-mtp": {"mtp_num_hidden_layers": 1},
    # Gemma 3, narrower: five layers that see 512 tokens, then one that sees all.
    "window": {
        **_COMMON, **_SMALL, "model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 512,
        "sliding_window_pattern": 6, "query_pre_attn_scalar": 64,
    },
    # A second model, for switching.
    "other": {**_COMMON, **_SMALL, "model_type": "llama", "rope_theta": 5e5},
    # Almost no work, so that the overhead remains.
    "trivial": {
        **_QWEN3, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 512,
    },
}  # fmt: skip
SHAPES["hybrid-mtp"] |= SHAPES["hybrid"]
_TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    "vocab_size": 512,
}  # fmt: skip


def write(folder: Path, shape: str, *, tiny: bool = False, seed: int = 1, dtype: str = "") -> Path:
    """
    Write a model of a shape, and return its directory. `tiny` reduces it to the smallest of its kind.

    The weights are float32, unless the shape or `dtype` says something else.
    """
    path = folder / shape
    path.mkdir(parents=True)
    config = {**SHAPES[shape], **(_TINY if tiny else {}), "eos_token_id": 0}
    config["dtype"] = dtype or config.get("dtype", "float32")
    (path / "config.json").write_text(json.dumps(config))
    words.train(path / "tokenizer.json", config["vocab_size"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": words.EOS, "pad_token": words.EOS}
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "clean_up_tokenization_spaces": False}))
    mx.save_safetensors(str(path / "model.safetensors"), _weights(config, seed), {"format": "mlx"})
    return path


def _weights(config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    model_class, arguments = _get_classes(config)
    mx.random.seed(seed)
    weights = dict(tree_flatten(model_class(arguments.from_dict(config)).parameters()))
    # No answer may end early. With a zero embedding the end token's logit is 0, and the largest random logit is above.
    embedding = weights["model.embed_tokens.weight"]
    embedding[0] = 0
    if config.get("mtp_num_hidden_layers"):
        weights |= _head(config)
    return {name: array.astype(getattr(mx, config["dtype"])) for name, array in weights.items()}


def _head(config: dict[str, Any]) -> dict[str, mx.array]:
    """Return the arrays of an MTP head, a layer of full attention, by their names in checkpoints of Qwen3-Next."""
    alone = {**config, "num_hidden_layers": 1, "full_attention_interval": 1}
    model_class, arguments = _get_classes(alone)
    layer, width = model_class(arguments.from_dict(alone)).layers[0], config["hidden_size"]
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    return {
        "mtp.fc.weight": mx.random.normal((width, 2 * width)) / width,
        **{f"mtp.{norm}.weight": mx.ones(width) for norm in norms},
        **{f"mtp.layers.0.{name}": array for name, array in tree_flatten(layer.parameters())},
    }
