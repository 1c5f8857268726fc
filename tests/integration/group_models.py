"""Models that ranks can cut."""

from __future__ import annotations

WIDE = {
    "model_type": "qwen2", "hidden_size": 96, "num_hidden_layers": 6, "intermediate_size": 192,
    "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 16, "rms_norm_eps": 1e-5, "vocab_size": 737,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
"""A model that two and three ranks can cut in each way."""


LAYERED = {
    "model_type": "qwen2", "hidden_size": 48, "num_hidden_layers": 4, "intermediate_size": 96,
    "num_attention_heads": 3, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "vocab_size": 737,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
