"""Writes tiny models with MTP heads, whose arrays have the names and the shapes of published checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests.support.models import TINY, write_random

_QWEN = {key: value for key, value in TINY["qwen3_next"].items() if key != "model_type"}
_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "norm_topk_prob": True,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "mimo": {**TINY["llama"], "model_type": "mimo", "num_nextn_predict_layers": 1},
    "glm4_moe": {
        **TINY["llama"], "model_type": "glm4_moe", "moe_intermediate_size": 32, "norm_topk_prob": True, "n_group": 1,
        "topk_group": 1, "n_shared_experts": 1, "n_routed_experts": 4, "routed_scaling_factor": 1.5,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "rope_scaling": None, "use_qk_norm": True,
        "attention_bias": True, "partial_rotary_factor": 0.5,
    },
    "deepseek_v3": {**TINY["deepseek_v3"], "num_experts_per_tok": 1, "n_shared_experts": 1},
    "glm4_moe_lite": {
        **TINY["deepseek_v3"], "model_type": "glm4_moe_lite", "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "routed_scaling_factor": 1.8, "norm_topk_prob": True, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "rope_theta": 10000.0, "rope_scaling": None,
    },
    "deepseek_v32": {
        **TINY["deepseek_v3"], "model_type": "deepseek_v32", "n_shared_experts": 1, "index_head_dim": 16,
        "index_n_heads": 8, "index_topk": 5,
    },
    "glm_moe_dsa": {
        **TINY["deepseek_v3"], "model_type": "glm_moe_dsa", "num_experts_per_tok": 1, "n_shared_experts": 1,
        "routed_scaling_factor": 1.0, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "n_group": 1, "topk_group": 1, "moe_layer_freq": 1, "attention_bias": False, "index_head_dim": 16,
        "index_n_heads": 8, "index_topk": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mimo_v2_flash": {
        **TINY["llama"], "model_type": "mimo_v2_flash", "num_experts_per_tok": 2, "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1], "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
        "sliding_window_size": 6, "moe_intermediate_size": 32, "n_shared_experts": None, "n_routed_experts": 4,
        "routed_scaling_factor": None, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "n_group": 1, "topk_group": 1, "layernorm_epsilon": 1e-5, "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "v_head_dim": 12, "swa_head_dim": 16,
        "swa_v_head_dim": 12, "partial_rotary_factor": 0.5, "attention_value_scale": 0.707,
    },
    "nemotron_h": {
        **TINY["llama"], "model_type": "nemotron_h", "num_hidden_layers": 4, "hybrid_override_pattern": "M*E-",
        "mtp_layers_block_type": ["attention", "moe"], "num_nextn_predict_layers": 1, "attention_bias": False,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "mamba_proj_bias": False, "ssm_state_size": 8, "conv_kernel": 4,
        "n_groups": 2, "mlp_bias": False, "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48, "moe_latent_size": 24, "n_group": 1,
        "topk_group": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
    "qwen3_next": {**_QWEN, "model_type": "qwen3_next"},
    "qwen3_5": {**_QWEN, "model_type": "qwen3_5", "rope_parameters": {
        "type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    }},
    "qwen3_5_moe": {**_QWEN, **_EXPERTS, "model_type": "qwen3_5_moe", "rope_parameters": {
        "type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    }},
}  # fmt: skip
"""Configurations of tiny models whose checkpoints may have a head."""

_WIDTH, _INNER, _SMALL, _HEADS, _KV_HEADS, _SIZE, _LATENT = 64, 96, 32, 4, 2, 16, 24


def head_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of a head by their names in a checkpoint of a family."""
    if family == "nemotron_h":
        return _nemotron()
    if family == "mimo":
        at, own = "model.mtp_layers.0.", ("input_proj", "token_layernorm", "hidden_layernorm", "final_layernorm")
        layer = {**_attention(bias=True), **_mlp("mlp.", _INNER)}
        inner = ""
    elif family == "mimo_v2_flash":
        at, own, inner = "model.mtp.layers.0.", ("eh_proj", "enorm", "hnorm", "final_layernorm"), ""
        layer = {**_attention(bias=False, value=12), "self_attn.attention_sink_bias": (_HEADS,)}
        layer |= _mlp("mlp.", _INNER)
    elif family.startswith("qwen"):
        at, own, inner = "mtp.", ("fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"), "layers.0."
        layer = {**_attention(bias=False), "self_attn.q_proj.weight": (2 * _HEADS * _SIZE, _WIDTH), **_qk_norms()}
        layer |= _mlp("mlp.", _INNER) if family != "qwen3_5_moe" else _qwen_experts()
    else:
        at, own, inner = "model.layers.2.", ("eh_proj", "enorm", "hnorm", "shared_head.norm"), ""
        layer = {**_attention(bias=True), **_qk_norms()} if family == "glm4_moe" else _latent()
        layer |= _indexer() if family in ("deepseek_v32", "glm_moe_dsa") else {}
        layer |= _experts(4 if family.startswith("glm4") else 2)
    second = "pre_mlp" if family == "mimo_v2_flash" else "post_attention"
    layer |= {"input_layernorm.weight": (_WIDTH,), f"{second}_layernorm.weight": (_WIDTH,)}
    mix, *norms = own
    modules = {f"{mix}.weight": (_WIDTH, 2 * _WIDTH), **{f"{norm}.weight": (_WIDTH,) for norm in norms}}
    return {at + name: shape for name, shape in modules.items()} | {
        at + inner + name: shape for name, shape in layer.items()
    }


def head_arrays(family: str, seed: int = 5) -> dict[str, Any]:
    """Return random arrays of a head, float32 of numpy, by their names in a checkpoint of a family."""
    source = np.random.default_rng(seed)
    arrays = {}
    for name, shape in head_shapes(family).items():
        around = 1.0 if name.endswith("norm.weight") or "pre_fc_norm" in name else 0.0
        arrays[name] = (around + 0.15 * source.standard_normal(shape)).astype(np.float32)
    return arrays


def model_with_head(folder: Path, family: str, *, right: bool = False) -> Path:
    """
    Write a model with an MTP head.

    Args:
        folder: Where to put it.
        family: One of `CONFIGS`.
        right: Whether each token is followed by the next id, and the head always knows; else all is random.
    """
    path = write_random(folder / f"{family}{'-right' * right}", CONFIGS[family], 7)
    add_head(path, family, right=right)
    return path


def add_head(path: Path, family: str, *, right: bool = False) -> None:
    """Add a head to the weights of a model, and change them if each token is to be followed by the next id."""
    file = path / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    weights |= {name: mx.array(array) for name, array in head_arrays(family).items()}
    if right:
        _count(weights)
    written = path / "written.safetensors"
    mx.save_safetensors(str(written), weights, {"format": "mlx"})
    shutil.move(written, file)


def _count(weights: dict[str, mx.array]) -> None:
    """Change weights so that layers add nothing, a state is its token's embedding, and its output is the next id."""
    for name, array in weights.items():
        if name.endswith(
            ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight", "fc2_latent_proj.weight")
        ):
            weights[name] = mx.zeros_like(array)
        if name.endswith("norm.weight") or "pre_fc_norm" in name:
            weights[name] = mx.ones_like(array)
        if name.endswith(("input_proj.weight", "fc.weight", "eh_proj.weight")):
            same, none = mx.eye(_WIDTH), mx.zeros((_WIDTH, _WIDTH))
            weights[name] = mx.concatenate([none, same] if "input_proj" in name else [same, none], axis=1)
    ends = (("embed_tokens.weight", "embeddings.weight"), "lm_head.weight")
    embeddings, output = (next(name for name in weights if name.endswith(end)) for end in ends)
    weights[output] = mx.concatenate([weights[embeddings][-1:], weights[embeddings][:-1]])


def _nemotron() -> dict[str, tuple[int, ...]]:
    """Return those of attention and experts, a block each; the experts compute with fewer numbers than a state has."""
    first = {f"{name.replace('self_attn', 'mixer')}": shape for name, shape in _attention(bias=False).items()}
    first |= {"eh_proj.weight": (_WIDTH, 2 * _WIDTH), "enorm.weight": (_WIDTH,), "hnorm.weight": (_WIDTH,)}
    second: dict[str, tuple[int, ...]] = {
        "mixer.gate.weight": (4, _WIDTH), "mixer.gate.e_score_correction_bias": (4,),
        "final_layernorm.weight": (_WIDTH,),
        "mixer.fc1_latent_proj.weight": (_LATENT, _WIDTH), "mixer.fc2_latent_proj.weight": (_WIDTH, _LATENT),
        "mixer.shared_experts.up_proj.weight": (48, _WIDTH), "mixer.shared_experts.down_proj.weight": (_WIDTH, 48),
    }  # fmt: skip
    for expert in range(4):
        second[f"mixer.experts.{expert}.up_proj.weight"] = (_SMALL, _LATENT)
        second[f"mixer.experts.{expert}.down_proj.weight"] = (_LATENT, _SMALL)
    blocks = ({**block, "norm.weight": (_WIDTH,)} for block in (first, second))
    return {
        f"mtp.layers.{number}.{name}": shape for number, block in enumerate(blocks) for name, shape in block.items()
    }


def _attention(*, bias: bool, value: int = _SIZE) -> dict[str, tuple[int, ...]]:
    sizes = {"q": _HEADS * _SIZE, "k": _KV_HEADS * _SIZE, "v": _KV_HEADS * value}
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj.weight": (n, _WIDTH) for name, n in sizes.items()}
    if bias:
        shapes |= {f"self_attn.{name}_proj.bias": (n,) for name, n in sizes.items()}
    return {**shapes, "self_attn.o_proj.weight": (_WIDTH, _HEADS * value)}


def _qk_norms() -> dict[str, tuple[int, ...]]:
    return {"self_attn.q_norm.weight": (_SIZE,), "self_attn.k_norm.weight": (_SIZE,)}


def _mlp(at: str, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {"gate_proj": (inner, _WIDTH), "up_proj": (inner, _WIDTH), "down_proj": (_WIDTH, inner)}
    return {f"{at}{name}.weight": shape for name, shape in shapes.items()}


def _experts(count: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.gate.weight": (count, _WIDTH), "mlp.gate.e_score_correction_bias": (count,),
    }  # fmt: skip
    for expert in range(count):
        shapes |= _mlp(f"mlp.experts.{expert}.", _SMALL)
    return shapes | _mlp("mlp.shared_experts.", _SMALL)


def _qwen_experts() -> dict[str, tuple[int, ...]]:
    return {
        "mlp.gate.weight": (4, _WIDTH), "mlp.shared_expert_gate.weight": (1, _WIDTH),
        "mlp.experts.gate_up_proj": (4, 2 * _SMALL, _WIDTH), "mlp.experts.down_proj": (4, _WIDTH, _SMALL),
        **_mlp("mlp.shared_expert.", _SMALL),
    }  # fmt: skip


def _latent() -> dict[str, tuple[int, ...]]:
    return {
        "self_attn.q_a_proj.weight": (16, _WIDTH), "self_attn.q_a_layernorm.weight": (16,),
        "self_attn.q_b_proj.weight": (2 * 16, 16), "self_attn.kv_a_proj_with_mqa.weight": (24, _WIDTH),
        "self_attn.kv_a_layernorm.weight": (16,), "self_attn.kv_b_proj.weight": (2 * 20, 16),
        "self_attn.o_proj.weight": (_WIDTH, 24),
    }  # fmt: skip


def _indexer() -> dict[str, tuple[int, ...]]:
    return {
        "self_attn.indexer.wq_b.weight": (8 * 16, 16), "self_attn.indexer.wk.weight": (16, _WIDTH),
        "self_attn.indexer.k_norm.weight": (16,), "self_attn.indexer.k_norm.bias": (16,),
        "self_attn.indexer.weights_proj.weight": (8, _WIDTH),
    }  # fmt: skip
