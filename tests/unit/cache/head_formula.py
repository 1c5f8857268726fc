"""
What an MTP head computes, in plain numpy: the published formulas of each family, beside mlx-lm's layers.

DeepSeek-V3 technical report, section 2.2; DeepSeek-V3.2 report for the indexer; the layers of the models themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

EPS = 1e-5
SIZE = 16
LATENT = ("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")


def rms(x: Array, weight: Array, eps: float = EPS) -> Array:
    """Return RMSNorm."""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def rotated(x: Array, dims: int, *, pairs: bool = False) -> Array:
    """Rotate the first dimensions of [heads, tokens, size] by position; neighbours together, or the two halves."""
    angles = np.arange(x.shape[1])[:, None] / 10000.0 ** (np.arange(0, dims, 2) / dims)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = (slice(0, dims, 2), slice(1, dims, 2)) if pairs else (slice(dims // 2), slice(dims // 2, dims))
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def attended(q: Array, k: Array, v: Array, seen: Array | None = None, sinks: Array | None = None) -> Array:
    """Return causal attention of [heads, tokens, size], as [tokens, heads * size]; a sink takes a share of a head."""
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    if seen is not None:
        scores[:, ~seen] = -np.inf
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks)[:, None, None]
    out: Array = weights / total @ v
    return np.concatenate(list(out), axis=-1)


def sigmoid(x: Array) -> Array:
    """Return the logistic function."""
    return np.asarray(1 / (1 + np.exp(-x)))


class Layer:
    """
    A decoder layer in numpy, with the arrays of a checkpoint.

    Args:
        family: The family.
        arrays: Its arrays, by their names in the layer.
    """

    def __init__(self, family: str, arrays: dict[str, Array]) -> None:
        self.family = family
        self.arrays = arrays

    def __call__(self, x: Array) -> Array:
        """Return its output, [tokens, width]."""
        attend = self._latent if self.family in LATENT else self._heads
        x = x + attend(rms(x, self.arrays["input_layernorm.weight"]))
        second = "pre_mlp" if self.family == "mimo_v2_flash" else "post_attention"
        inner = rms(x, self.arrays[f"{second}_layernorm.weight"])
        if self.family == "glm4_moe" or self.family in LATENT:
            return x + self._experts(inner)
        return x + (self._qwen_experts(inner) if self.family == "qwen3_5_moe" else self._mlp("mlp", inner))

    def _linear(self, name: str, x: Array) -> Array:
        out: Array = x @ self.arrays[f"{name}.weight"].T + self.arrays.get(f"{name}.bias", np.zeros(1))
        return out

    def _mlp(self, name: str, x: Array) -> Array:
        gate, up = self._linear(f"{name}.gate_proj", x), self._linear(f"{name}.up_proj", x)
        return self._linear(f"{name}.down_proj", gate * sigmoid(gate) * up)

    def _split(self, name: str, x: Array, size: int = SIZE) -> Array:
        out = self._linear(f"self_attn.{name}_proj", x)
        return out.reshape(len(x), -1, size).swapaxes(0, 1)

    def _heads(self, x: Array) -> Array:
        gate: Array = np.zeros(0)
        if self.family.startswith("qwen"):
            both = self._linear("self_attn.q_proj", x).reshape(len(x), -1, 2 * SIZE)
            q, gate = both[..., :SIZE].swapaxes(0, 1), both[..., SIZE:].reshape(len(x), -1)
        else:
            q = self._split("q", x)
        k = self._split("k", x)
        if self.family == "mimo_v2_flash":
            return self._windowed(q, k, 0.707 * self._split("v", x, 12))
        v = self._split("v", x)
        if "self_attn.q_norm.weight" in self.arrays:
            q, k = (rms(y, self.arrays[f"self_attn.{name}_norm.weight"]) for name, y in (("q", q), ("k", k)))
        dims = SIZE if self.family == "mimo" else SIZE // 2
        out = attended(rotated(q, dims), rotated(k, dims), v)
        return self._linear("self_attn.o_proj", out * sigmoid(gate) if gate.size else out)

    def _windowed(self, q: Array, k: Array, v: Array) -> Array:
        """Attention to the last six tokens and a sink of each head."""
        age = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])
        sinks = self.arrays["self_attn.attention_sink_bias"]
        return self._linear("self_attn.o_proj", attended(rotated(q, 8), rotated(k, 8), v, age < 6, sinks))

    def _indexed(self, x: Array, low: Array) -> Array | None:
        """Return which five tokens each one attends to: formula 1 of the DeepSeek-V3.2 report; None for all."""
        if self.family not in ("deepseek_v32", "glm_moe_dsa"):
            return None
        pairs = self.family == "glm_moe_dsa"
        q = self._linear("self_attn.indexer.wq_b", low).reshape(len(x), 8, 16).swapaxes(0, 1)
        k = self._linear("self_attn.indexer.wk", x)
        k = (k - k.mean(-1, keepdims=True)) / np.sqrt(k.var(-1, keepdims=True) + 1e-5)
        k = k * self.arrays["self_attn.indexer.k_norm.weight"] + self.arrays["self_attn.indexer.k_norm.bias"]
        q, k = rotated(q, 8, pairs=pairs), rotated(k[None], 8, pairs=pairs)
        products = np.maximum(q @ k.swapaxes(1, 2), 0)
        scores = (self._linear("self_attn.indexer.weights_proj", x).T[..., None] * products).sum(0)
        scores[np.triu(np.ones(scores.shape, bool), 1)] = -np.inf
        ranked = -np.sort(-scores, axis=-1)
        assert (ranked[5:, 4] - ranked[5:, 5] > 1e-3).all(), "two tokens are as good as each other"
        return np.asarray(scores >= ranked[:, 4:5])

    def _latent(self, x: Array) -> Array:
        """Multi-head latent attention, without its short cuts: keys and values are unfolded."""
        eps = EPS if self.family == "glm4_moe_lite" else 1e-6
        low = rms(self._linear("self_attn.q_a_proj", x), self.arrays["self_attn.q_a_layernorm.weight"], eps)
        q = self._linear("self_attn.q_b_proj", low).reshape(len(x), 2, 16).swapaxes(0, 1)
        both = self._linear("self_attn.kv_a_proj_with_mqa", x)
        latent = rms(both[:, :16], self.arrays["self_attn.kv_a_layernorm.weight"], eps)
        place = rotated(both[None, :, 16:], 8, pairs=True)
        unfolded = self._linear("self_attn.kv_b_proj", latent).reshape(len(x), 2, 20).swapaxes(0, 1)
        q = np.concatenate([q[..., :8], rotated(q[..., 8:], 8, pairs=True)], axis=-1)
        k = np.concatenate([unfolded[..., :8], np.repeat(place, 2, axis=0)], axis=-1)
        return self._linear("self_attn.o_proj", attended(q, k, unfolded[..., 8:], self._indexed(x, low)))

    def _experts(self, x: Array) -> Array:
        """Experts that a sigmoid chooses with a correction; two of them with a factor, or one."""
        scores = sigmoid(self._linear("mlp.gate", x))
        count, factor = {"glm4_moe": (2, 1.5), "glm4_moe_lite": (2, 1.8)}.get(self.family, (1, 1.0))
        out = self._mlp("mlp.shared_experts", x)
        for row, chosen in enumerate(np.argsort(-scores - self.arrays["mlp.gate.e_score_correction_bias"])[:, :count]):
            total = scores[row, chosen].sum() if count > 1 else 1.0
            for expert in chosen:
                part = self._mlp(f"mlp.experts.{expert}", x[row : row + 1])[0]
                out[row] += factor * scores[row, expert] / total * part
        return out

    def _qwen_experts(self, x: Array) -> Array:
        logits = self._linear("mlp.gate", x)
        out = sigmoid(self._linear("mlp.shared_expert_gate", x)) * self._mlp("mlp.shared_expert", x)
        both, down = self.arrays["mlp.experts.gate_up_proj"], self.arrays["mlp.experts.down_proj"]
        for row, chosen in enumerate(np.argsort(-logits)[:, :2]):
            weights = np.exp(logits[row, chosen])
            for expert, weight in zip(chosen, weights / weights.sum(), strict=True):
                gate, up = np.split(both[expert] @ x[row], 2)
                out[row] += weight * (down[expert] @ (gate * sigmoid(gate) * up))
        return out


class Blocks:
    """
    Nemotron's layer in numpy: attention without positions, and experts, a block each.

    Args:
        arrays: Its arrays, by their names behind `mtp.layers.`.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    def __call__(self, x: Array) -> Array:
        """Return its output, [tokens, width]."""
        x = x + self._heads(rms(x, self.arrays["0.norm.weight"]))
        return x + self._experts(rms(x, self.arrays["1.norm.weight"]))

    def _linear(self, name: str, x: Array) -> Array:
        return np.asarray(x @ self.arrays[f"{name}.weight"].T)

    def _heads(self, x: Array) -> Array:
        q, k, v = (self._linear(f"0.mixer.{name}_proj", x).reshape(len(x), -1, SIZE).swapaxes(0, 1) for name in "qkv")
        return self._linear("0.mixer.o_proj", attended(q, k, v))

    def _expert(self, name: str, x: Array) -> Array:
        return self._linear(f"{name}.down_proj", np.maximum(self._linear(f"{name}.up_proj", x), 0) ** 2)

    def _experts(self, x: Array) -> Array:
        """Two experts of four, between two projections, and one that is shared."""
        scores, small = sigmoid(self._linear("1.mixer.gate", x)), self._linear("1.mixer.fc1_latent_proj", x)
        mixed = np.zeros_like(small)
        for row, chosen in enumerate(np.argsort(-scores - self.arrays["1.mixer.gate.e_score_correction_bias"])[:, :2]):
            for expert in chosen:
                part = self._expert(f"1.mixer.experts.{expert}", small[row : row + 1])[0]
                mixed[row] += 2.5 * scores[row, expert] / scores[row, chosen].sum() * part
        return self._linear("1.mixer.fc2_latent_proj", mixed) + self._expert("1.mixer.shared_experts", x)


def states_of(family: str, arrays: dict[str, Array], states: Array, embedded: Array) -> Array:
    """Return the states of a head by the formula: normalise both, put them together, a layer, normalise."""
    at, inner, mix, of_token, of_state, last, tokens_first = {
        "mimo": ("model.mtp_layers.0.", "", "input_proj", "token_layernorm", "hidden_layernorm", "final_layernorm", 0),
        "mimo_v2_flash": ("model.mtp.layers.0.", "", "eh_proj", "enorm", "hnorm", "final_layernorm", 1),
        "nemotron_h": ("mtp.layers.", "", "0.eh_proj", "0.enorm", "0.hnorm", "1.final_layernorm", 1),
        "glm4_moe": ("model.layers.2.", "", "eh_proj", "enorm", "hnorm", "shared_head.norm", 1),
    }.get(
        "glm4_moe" if family in LATENT else family,
        ("mtp.", "layers.0.", "fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", 1),
    )
    own = {name.removeprefix(str(at)): array.astype(np.float64) for name, array in arrays.items()}
    layer = {name.removeprefix(str(inner)): array for name, array in own.items()}
    parts = [rms(embedded, own[f"{of_token}.weight"]), rms(states, own[f"{of_state}.weight"])]
    mixed = np.concatenate(parts if tokens_first else parts[::-1], axis=-1) @ own[f"{mix}.weight"].T
    through = Blocks(layer) if family == "nemotron_h" else Layer(family, layer)
    return rms(through(mixed), own[f"{last}.weight"])
