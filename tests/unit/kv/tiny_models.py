"""Tiny random models of mlx-lm's own classes, in float32, and a small engine that uses them as requests do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models import (
    afm7,
    deepseek_v3,
    falcon_h1,
    gemma3_text,
    gpt_oss,
    llama,
    llama4,
    mamba,
    openelm,
    qwen3_next,
    youtu_llm,
)

from daemon.kv.evictor import PrefixLimits
from daemon.kv.lease import PrefixLease
from daemon.kv.mlx.adapters.kv_cache import copied
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.request_kv import RequestKV
from daemon.kv.mlx.self_test import probe
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import Resume

VOCABULARY = 61


def _llama(layers: int = 2) -> Any:
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=layers,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
        )
    )


def _youtu(layers: int = 2) -> Any:
    return youtu_llm.Model(
        youtu_llm.ModelArgs(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            v_head_dim=12,
            qk_nope_head_dim=8,
        )
    )


def _deepseek() -> Any:
    return deepseek_v3.Model(
        deepseek_v3.ModelArgs(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            v_head_dim=12,
            qk_nope_head_dim=8,
        )
    )


def _afm7() -> Any:
    return afm7.Model(
        afm7.ModelArgs(
            model_type="afm7",
            vocab_size=VOCABULARY,
            hidden_dim=32,
            num_layers=4,
            num_kv_reuse_layers=2,
            num_heads=4,
            num_kv_heads=2,
        )
    )


def _openelm() -> Any:
    return openelm.Model(
        openelm.ModelArgs(
            model_type="openelm",
            head_dim=8,
            num_transformer_layers=3,
            model_dim=32,
            vocab_size=VOCABULARY,
            ffn_dim_divisor=8,
            num_query_heads=[4, 4, 4],
            num_kv_heads=[2, 1, 2],
            ffn_multipliers=[1.0, 1.0, 1.0],
        )
    )


def _gemma3() -> Any:
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            intermediate_size=48,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=32,
            sliding_window_pattern=3,
        )
    )


def _gpt_oss() -> Any:
    return gpt_oss.Model(
        gpt_oss.ModelArgs(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=20,
            num_local_experts=2,
            num_experts_per_tok=1,
            rope_scaling=None,
        )
    )


def _mamba() -> Any:
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            state_size=8,
            num_hidden_layers=2,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=8,
        )
    )


def _qwen3_next() -> Any:
    return qwen3_next.Model(
        qwen3_next.ModelArgs(
            model_type="qwen3_next",
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=48,
            num_attention_heads=2,
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
            linear_conv_kernel_dim=4,
            num_experts=0,
            num_experts_per_tok=0,
            decoder_sparse_step=1,
            shared_expert_intermediate_size=0,
            mlp_only_layers=[],
            moe_intermediate_size=0,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
            num_key_value_heads=1,
            rope_theta=10000.0,
            partial_rotary_factor=0.5,
            max_position_embeddings=1024,
            head_dim=16,
            full_attention_interval=2,
        )
    )


def _falcon_h1() -> Any:
    return falcon_h1.Model(
        falcon_h1.ModelArgs(
            head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            hidden_size=32,
            intermediate_size=48,
            mamba_d_ssm=32,
            mamba_d_state=8,
            mamba_d_head=16,
            mamba_n_heads=2,
            num_hidden_layers=2,
            vocab_size=VOCABULARY,
        )
    )


def _llama4() -> Any:
    return llama4.Model(
        llama4.ModelArgs(
            model_type="llama4",
            text_config={
                "attention_bias": False, "attention_chunk_size": 32, "head_dim": 16, "hidden_size": 32,
                "interleave_moe_layer_step": 100, "intermediate_size": 48, "intermediate_size_mlp": 48,
                "max_position_embeddings": 1024, "model_type": "llama4_text", "num_attention_heads": 2,
                "num_experts_per_tok": 1, "num_hidden_layers": 4, "num_key_value_heads": 1, "num_local_experts": 1,
                "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0, "use_qk_norm": False,
                "vocab_size": VOCABULARY,
            },
        )
    )  # fmt: skip


REUSABLE: dict[str, Callable[[], Any]] = {
    "llama with grouped queries": _llama,
    "youtu_llm with wide keys and narrow values": _youtu,
    "youtu_llm of one layer": lambda: _youtu(1),
    "deepseek_v3 with latents": _deepseek,
    "afm7 with fewer caches than layers": _afm7,
    "openelm with layers of two shapes": _openelm,
}
WINDOWED: dict[str, Callable[[], Any]] = {
    "gemma3_text with windows of 32": _gemma3,
    "gpt_oss with windows of 20": _gpt_oss,
}
RECURRENT: dict[str, Callable[[], Any]] = {
    "mamba with recurrent state": _mamba,
    "qwen3_next with both": _qwen3_next,
    "falcon_h1 with both in each layer": _falcon_h1,
}
OTHER: dict[str, Callable[[], Any]] = {
    "llama4 with chunked attention": _llama4,
}


def build(make: Callable[[], Any]) -> Any:
    """Return a model with evaluated random weights, the same in every run."""
    mx.random.seed(1)
    model = make()
    model.eval()
    mx.eval(model.parameters())
    return model


def tokens(count: int) -> list[int]:
    """Return a prompt without repetitions of the period of a block."""
    return [(i * i + 3 * i + i // 7) % VOCABULARY for i in range(count)]


@dataclass
class TinyEngine:
    """A model, its layout and a prefix cache, used as the engine uses them."""

    model: Any
    layout: Layout = field(init=False)
    prefixes: PrefixCache = field(init=False)

    def __post_init__(self) -> None:
        self.layout = probe(self.model)
        self.prefixes = PrefixCache(PrefixLimits(1000, 10**9), copy=copied)

    def compute(self, caches: list[Any], ids: Sequence[int]) -> mx.array:
        """Run tokens through the model and return their logits, evaluated, as is the cache."""
        logits: mx.array = self.model(mx.array([list(ids)]), cache=caches)
        mx.eval(logits, [cache.state for cache in caches])
        return logits[0]

    def cold(self, ids: Sequence[int], room: int = 0) -> tuple[list[Any], mx.array]:
        """Compute a whole prompt."""
        caches = self.layout.new_cache(self.model, len(ids) + room)
        return caches, self.compute(caches, ids)

    def store(self, ids: Sequence[int], caches: Sequence[Any], resume: Resume = Resume.YES) -> int:
        """Store what a live cache holds."""
        live = RequestKV(self.layout, caches, len(ids))
        return self.prefixes.store("n", ids, self.layout.parts, live, resume=resume)

    def lookup(self, ids: Sequence[int]) -> PrefixLease:
        """Lease the stored prefix of a prompt."""
        return self.prefixes.lookup("n", ids, self.layout.parts)

    def restored(self, ids: Sequence[int], room: int = 0) -> tuple[list[Any], int]:
        """Restore the stored prefix of a prompt, and return the cache and how many tokens it holds."""
        with self.lookup(ids) as lease:
            if not lease.tokens:
                return self.layout.new_cache(self.model, len(ids) + room), 0
            return self.restore(lease, len(ids) + room), lease.tokens

    def restore(self, lease: PrefixLease, tokens: int) -> list[Any]:
        """Restore a match into a cache with room for `tokens` tokens."""
        runs = self.prefixes.runs(lease, self.layout.parts)
        return self.layout.restored_cache(self.model, runs, lease.checkpoint, lease.tokens, tokens)

    def payloads(self) -> list[bytes]:
        """Return the bytes of all that is stored in blocks."""
        trie = self.prefixes.trie
        nodes = trie.subtree(trie.tops(lambda _: True))
        extents = dict.fromkeys(extent for node in nodes for extent in node.extents if extent is not None)
        return [raw(array) for extent in extents for array in cast("tuple[mx.array, ...]", extent.payload)]


def raw(array: mx.array) -> bytes:
    """Return the bytes of an evaluated array."""
    return bytes(memoryview(array))  # type: ignore[arg-type]


def same_bits(one: mx.array, two: mx.array) -> bool:
    """Tell whether two arrays are equal bit for bit."""
    return one.shape == two.shape and one.dtype == two.dtype and raw(one) == raw(two)
