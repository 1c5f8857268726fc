"""Writes model directories for tests: copies of the embedded model, intact or damaged, and tiny random models."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from daemon.cache.resolver import EMBEDDED_PATH


def copy_of_embedded(folder: Path, name: str = "model", *, tested: bool = False, **config: Any) -> Path:
    """
    Copy the embedded model, with changes to its config.json, and return the directory.

    Args:
        folder: Where to put it.
        name: The directory's name.
        tested: Whether the copy is the same model in each test, so that engines of one process test it once. Only for
            an engine of the test's own. Else each copy is a new model.
        config: Changes to its configuration.
    """
    path = folder / name
    shutil.copytree(EMBEDDED_PATH, path)
    file = path / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "copy": name if tested else uuid.uuid4().hex, **config})
    )
    return path


def truncated(folder: Path) -> Path:
    """Return a model with only the first half of its weight file."""
    path = copy_of_embedded(folder, "truncated")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return path


def with_config(folder: Path, text: str) -> Path:
    """Return a model with `text` as its config.json."""
    path = copy_of_embedded(folder, "bad-config")
    (path / "config.json").write_text(text)
    return path


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
    "minimax_m3_vl": {
        "text_config": {
            **_COMMON, "moe_layer_freq": [0, 0], "dense_intermediate_size": 96, "sparse_attention_freq": [0, 1],
            "index_n_heads": 2, "index_head_dim": 16, "index_block_size": 8, "index_topk_blocks": 3,
        },
    },
}  # fmt: skip

TINY = {family: {"model_type": family, **_COMMON, **config} for family, config in _CONFIGS.items()}
"""Configurations of tiny models by family, of every kind of cache."""


def random_model(folder: Path, family: str) -> Path:
    """Write a model of a family with random float32 weights and the embedded model's tokenizer."""
    return write_random(folder / family, TINY[family], 7)


def adapter_of(path: Path, config: dict[str, Any], seed: int = 9) -> Path:
    """Write a LoRA adapter of a tiny model's queries and values, with random numbers that change its answers."""
    path.mkdir()
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    lora = {"rank": 2, "scale": 4.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({"num_layers": layers, "lora_parameters": lora}))
    mx.random.seed(seed)
    arrays = {}
    for layer in range(layers):
        for name, heads in (("q_proj", config["num_attention_heads"]), ("v_proj", config["num_key_value_heads"])):
            place = f"model.layers.{layer}.self_attn.{name}"
            arrays[f"{place}.lora_a"] = mx.random.normal((width, 2))
            arrays[f"{place}.lora_b"] = mx.random.normal((2, heads * config["head_dim"]))
    mx.save_safetensors(str(path / "adapters.safetensors"), arrays)
    return path


def wide_model(folder: Path, name: str, seed: int, layers: int = 3, width: int = 512) -> Path:
    """Write a model of about 13 MB a layer, four times that for twice the width. Each seed is another model."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    return write_random(folder / name, {**TINY["qwen3"], **sizes}, seed)


def heavy_model(folder: Path, name: str, seed: int) -> Path:
    """Write a model of about 42 MB, most of it a table of positions: its passes are short. Each seed is another one."""
    sizes = {"n_ctx": 4096, "n_embd": 256, "n_head": 4, "n_layer": 1, "n_positions": 37_000, "layer_norm_epsilon": 1e-5}
    config = {"model_type": "gpt2", "vocab_size": _COMMON["vocab_size"], "max_position_embeddings": 4096, **sizes}
    return write_random(folder / name, config, seed)


def write_random(path: Path, settings: dict[str, Any], seed: int, dtype: str = "float32") -> Path:
    """Write a model with random weights of a type and the embedded model's tokenizer."""
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_PATH / name, path)
    config = {**settings, "eos_token_id": 2}
    (path / "config.json").write_text(json.dumps(config))
    model_class, arguments = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(arguments.from_dict(config))
    model.set_dtype(getattr(mx, dtype))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    return path


def marked_model(
    folder: Path, marks: dict[str, bool], template: str = "", config: dict[str, Any] | None = None
) -> Path:
    """
    Write a random model that knows marks of reasoning and tool calls.

    Args:
        folder: Where to put it.
        marks: Tokens to add from id 737 on, and whether each is special.
        template: What its chat template adds at the end of a prompt.
        config: Its configuration; None for that of a tiny Qwen 3.
    """
    path = write_random(folder / "marked", {**(config or TINY["qwen3"]), "vocab_size": 752}, 11)
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for number, (mark, special) in enumerate(marks.items(), 737):
        tokenizer["added_tokens"].append({"id": number, "content": mark, **flags, "special": special})
    file.write_text(json.dumps(tokenizer))
    with (path / "chat_template.jinja").open("a") as chat:
        chat.write(template)
    return path


INSTRUCTION = "Instruct: Given a web search query, retrieve the relevant passages that answer the query\nQuery:"
"""An instruction of several blocks, as Qwen3-Embedding has it."""


def embedding_model(
    path: Path,
    mode: str = "lasttoken",
    *,
    normalize: bool = True,
    family: str = "qwen3",
    pooling: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """
    Write a random model that says how its hidden states become vectors, as sentence-transformers saves it.

    Args:
        path: The directory to make.
        mode: The part of the name of its pooling mode that differs, such as "lasttoken" or "mean_tokens".
        normalize: Whether its vectors get length 1.
        family: Its architecture, of `TINY`.
        pooling: More settings of its pooling.
        base: More keys of its config.json.
        settings: More keys of its config_sentence_transformers.json.
    """
    write_random(path, {**TINY[family], **(base or {})}, 5)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    folders = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": folders[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    flags: dict[str, Any] = {
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_lasttoken": False,
    }
    flags = {"word_embedding_dimension": 64, **flags, f"pooling_mode_{mode}": True, **(pooling or {})}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    prompts = {"prompts": {"query": INSTRUCTION, "document": ""}, "default_prompt_name": None, **settings}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return path
