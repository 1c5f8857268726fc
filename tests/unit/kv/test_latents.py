"""Latent attention behind shared prefixes: which families share, and that they compute what each row computes alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from mlx_lm.utils import _get_classes

from daemon.kv.mlx import latents, shared_attention
from daemon.kv.mlx.batch_cache import to_batch
from daemon.kv.mlx.self_test import probe
from daemon.kv.mlx.shared_kv import SharedKV
from daemon.kv.mlx.shared_self_test import proving_shared
from daemon.kv.mlx.sharing import share
from daemon.shared.slices import drain
from tests.unit.kv.tiny_models import same_bits

HEADS, LATENT, POSITION = 3, 16, 8
PREFIX = 48
SCALE = 0.2

_SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "qk_nope_head_dim": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024,
}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 16, "n_routed_experts": 2, "num_experts_per_tok": 1, "first_k_dense_replace": 2,
}  # fmt: skip
_YARN = {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": 1024}

FAMILIES: dict[str, tuple[bool, dict[str, Any]]] = {
    "deepseek_v2": (True, {"rope_scaling": _YARN}),
    "deepseek_v3": (True, {}),
    "glm4_moe_lite": (True, _EXPERTS),
    "kimi_linear": (True, {
        "head_dim": 16, "rope_theta": 10000.0, "model_max_length": 1024, "num_experts": 0, "moe_intermediate_size": 16,
        "linear_attn_config": {
            "kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 32, "short_conv_kernel_size": 4,
        },
    }),
    "longcat_flash": (True, {
        "attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 48, "moe_topk": 1,
        "expert_ffn_hidden_size": 16, "n_routed_experts": 2, "zero_expert_num": 1, "num_layers": 2,
        "routed_scaling_factor": 1.0, "rope_theta": 10000.0, "mla_scale_q_lora": True, "mla_scale_kv_lora": True,
        "attention_bias": False,
    }),
    "minicpm3": (True, {
        "dim_model_base": 32, "scale_depth": 1.0, "scale_emb": 1.0,
        "rope_scaling": {
            "type": "longrope", "original_max_position_embeddings": 1024, "short_factor": [1.0] * 4,
            "long_factor": [1.0] * 4,
        },
    }),
    "mistral4": (True, {
        **_EXPERTS, "n_shared_experts": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True, "topk_group": 1,
        "n_group": 1,
        "rope_parameters": {
            **_YARN, "rope_theta": 10000.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        },
    }),
    "deepseek_v32": (False, {
        "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8, "rope_parameters": {"rope_theta": 10000.0},
    }),
}  # fmt: skip
"""Families whose keys come from latents, and whether they share. An indexer picks tokens from keys of its own."""


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_latents_share_or_say_so(family: str) -> None:
    """Those that keep latents, and those that keep the keys and values which they expand."""
    shares, more = FAMILIES[family]
    config = {"model_type": family, **_SIZES, **more}
    model_class, arguments = _get_classes(config)
    mx.random.seed(1)
    model = model_class(arguments.from_dict(config))
    model.eval()
    mx.eval(model.parameters())
    assert drain(proving_shared(model, probe(model))) == shares


def grown(cache: Any, tokens: int) -> Any:
    """Add random latents and position keys to a cache."""
    cache.update_and_fetch(mx.random.normal((1, 1, tokens, LATENT)), mx.random.normal((1, 1, tokens, POSITION)))
    return cache


def readers_of_two() -> list[SharedKV]:
    """Return four readers with tails of several lengths, the last of a longer prefix than the others."""
    (base,), _ = share([grown(KVCache(), PREFIX + 2)], PREFIX, 16, copy=False)
    readers = [base, *(grown(SharedKV(base.prefix, 0, KVCache()), more) for more in (1, 9, 17))]
    (longer,), _ = share([readers.pop()], PREFIX + 16, 8, copy=False)
    return [*readers, longer]


def alone(reader: SharedKV) -> KVCache:
    """Return a plain cache of the tokens that a reader holds."""
    cache = KVCache()
    tail = reader.tail.keys_and_values()
    cache.update_and_fetch(*latents.whole([reader.prefix], 0, tail))
    return cache


Pass = tuple[mx.array, mx.array, mx.array, mx.array]
"""Queries, queries of positions, latents and position keys."""


def fed(rows: int, tokens: int) -> Pass:
    """Return what a pass of a layer begins with."""
    shapes = ((HEADS, LATENT), (HEADS, POSITION), (1, LATENT), (1, POSITION))
    queries, asked, new, keys = (mx.random.normal((rows, heads, tokens, width)) for heads, width in shapes)
    return queries, asked, new, keys


def attended(cache: Any, given: Pass) -> mx.array:
    """Attend as a layer with latents does; the expansion is left out."""
    queries, asked, new, keys = given
    mask = cache.make_mask(queries.shape[2], return_array=True, window_size=None)
    held, positions = cache.update_and_fetch(new, keys)
    scores = (asked * SCALE) @ positions.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    return shared_attention.attend(queries, held, held, cache, SCALE, scores)


@pytest.mark.parametrize("tokens", [1, 3, shared_attention.FEW + 1])
def test_latent_rows_have_the_bits_of_one_array(tokens: int) -> None:
    """One token attends in parts, several as a whole; each row of a batch, and a row alone."""
    mx.random.seed(5)
    readers = readers_of_two()
    wholes = [alone(reader) for reader in readers]
    batch = to_batch(readers[0])
    for reader in readers[1:]:
        batch.extend(to_batch(reader))
    given = fed(4, tokens)
    got = attended(batch, given)
    for row, (reader, whole) in enumerate(zip(readers, wholes, strict=True)):
        own = tuple(array[row : row + 1] for array in given)
        expected = attended(whole, own)  # type: ignore[arg-type]
        assert same_bits(got[row : row + 1], expected)
        assert same_bits(attended(reader, own), expected)  # type: ignore[arg-type]
    assert batch.attended


def test_scores_without_a_question_are_refused() -> None:
    """A model that scores positions in another way would miss those of the prefix."""
    reader = readers_of_two()[0]
    queries, _, new, keys = fed(1, 1)
    held, _ = reader.update_and_fetch(new, keys)
    with pytest.raises(TypeError, match="cannot be added"):
        shared_attention.attend(queries, held, held, reader, SCALE, mx.zeros((1, HEADS, 1, held.shape[2])))


def test_plain_attention_that_looks_like_latents_is_exact() -> None:
    """One head with keys wider than its values: no scores are handed over, and the values are values."""
    mx.random.seed(6)
    reader = readers_of_two()[1]
    whole = alone(reader)
    for tokens in (1, 4):
        queries, _, keys, values = fed(1, tokens)
        results = []
        for cache in (reader, whole):
            mask = cache.make_mask(tokens, return_array=False, window_size=None)
            held_keys, held_values = cache.update_and_fetch(keys, values)
            results.append(shared_attention.attend(queries, held_keys, held_values, cache, SCALE, mask))
        assert same_bits(*results)
