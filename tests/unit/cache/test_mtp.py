"""MTP heads compute what their formula says: an implementation in plain numpy is beside mlx-lm's layers."""

from __future__ import annotations

import copy
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import _get_classes

from daemon.cache.identity import identify
from daemon.cache.mlx.loader import load
from daemon.cache.mlx.module_size import arrays as arrays_of
from daemon.cache.mlx.module_size import nbytes
from daemon.cache.mlx.mtp import NO_HEAD, MtpHead, TakenHead, Unbuilt, trying_head
from daemon.cache.mlx.shard import WHOLE
from tests.support.heads import CONFIGS, head_arrays, model_with_head
from tests.support.models import TINY
from tests.unit.cache.loads import run, start

Array = np.ndarray[Any, np.dtype[Any]]

EPS = 1e-5
SIZE = 16


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


def attended(q: Array, k: Array, v: Array) -> Array:
    """Return causal attention of [heads, tokens, size], as [tokens, heads * size]."""
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out: Array = (weights / weights.sum(-1, keepdims=True)) @ v
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
        attend = self._latent if self.family in ("deepseek_v3", "glm4_moe_lite") else self._heads
        x = x + attend(rms(x, self.arrays["input_layernorm.weight"]))
        inner = rms(x, self.arrays["post_attention_layernorm.weight"])
        if self.family in ("glm4_moe", "glm4_moe_lite", "deepseek_v3"):
            return x + self._experts(inner)
        return x + (self._qwen_experts(inner) if self.family == "qwen3_5_moe" else self._mlp("mlp", inner))

    def _linear(self, name: str, x: Array) -> Array:
        out: Array = x @ self.arrays[f"{name}.weight"].T + self.arrays.get(f"{name}.bias", np.zeros(1))
        return out

    def _mlp(self, name: str, x: Array) -> Array:
        gate, up = self._linear(f"{name}.gate_proj", x), self._linear(f"{name}.up_proj", x)
        return self._linear(f"{name}.down_proj", gate * sigmoid(gate) * up)

    def _split(self, name: str, x: Array) -> Array:
        out = self._linear(f"self_attn.{name}_proj", x)
        return out.reshape(len(x), -1, SIZE).swapaxes(0, 1)

    def _heads(self, x: Array) -> Array:
        gate: Array = np.zeros(0)
        if self.family.startswith("qwen"):
            both = self._linear("self_attn.q_proj", x).reshape(len(x), -1, 2 * SIZE)
            q, gate = both[..., :SIZE].swapaxes(0, 1), both[..., SIZE:].reshape(len(x), -1)
        else:
            q = self._split("q", x)
        k, v = self._split("k", x), self._split("v", x)
        if "self_attn.q_norm.weight" in self.arrays:
            q, k = (rms(y, self.arrays[f"self_attn.{name}_norm.weight"]) for name, y in (("q", q), ("k", k)))
        dims = SIZE if self.family == "mimo" else SIZE // 2
        out = attended(rotated(q, dims), rotated(k, dims), v)
        return self._linear("self_attn.o_proj", out * sigmoid(gate) if gate.size else out)

    def _latent(self, x: Array) -> Array:
        """Multi-head latent attention, without its short cuts: keys and values are unfolded."""
        eps = 1e-6 if self.family == "deepseek_v3" else EPS
        low = rms(self._linear("self_attn.q_a_proj", x), self.arrays["self_attn.q_a_layernorm.weight"], eps)
        q = self._linear("self_attn.q_b_proj", low).reshape(len(x), 2, 16).swapaxes(0, 1)
        both = self._linear("self_attn.kv_a_proj_with_mqa", x)
        latent = rms(both[:, :16], self.arrays["self_attn.kv_a_layernorm.weight"], eps)
        place = rotated(both[None, :, 16:], 8, pairs=True)
        unfolded = self._linear("self_attn.kv_b_proj", latent).reshape(len(x), 2, 20).swapaxes(0, 1)
        q = np.concatenate([q[..., :8], rotated(q[..., 8:], 8, pairs=True)], axis=-1)
        k = np.concatenate([unfolded[..., :8], np.repeat(place, 2, axis=0)], axis=-1)
        return self._linear("self_attn.o_proj", attended(q, k, unfolded[..., 8:]))

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


def states_of(family: str, arrays: dict[str, Array], states: Array, embedded: Array) -> Array:
    """Return the states of a head by the formula: normalise both, put them together, a layer, normalise."""
    at, inner, mix, of_token, of_state, last, tokens_first = {
        "mimo": ("model.mtp_layers.0.", "", "input_proj", "token_layernorm", "hidden_layernorm", "final_layernorm", 0),
        "glm4_moe": ("model.layers.2.", "", "eh_proj", "enorm", "hnorm", "shared_head.norm", 1),
    }.get(
        {"deepseek_v3": "glm4_moe", "glm4_moe_lite": "glm4_moe"}.get(family, family),
        ("mtp.", "layers.0.", "fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", 1),
    )
    own = {name.removeprefix(str(at)): array.astype(np.float64) for name, array in arrays.items()}
    layer = {name.removeprefix(str(inner)): array for name, array in own.items()}
    parts = [rms(embedded, own[f"{of_token}.weight"]), rms(states, own[f"{of_state}.weight"])]
    mixed = np.concatenate(parts if tokens_first else parts[::-1], axis=-1) @ own[f"{mix}.weight"].T
    return rms(Layer(family, layer)(mixed), own[f"{last}.weight"])


def built(family: str, arrays: dict[str, Any], **others: Any) -> Any:
    """Return the head that is built of the arrays of a checkpoint, and of others that its model has."""
    taken = TakenHead()
    weights = {name: mx.array(array) for name, array in arrays.items()} | others
    kept = set(weights) - set(arrays)
    config = {**CONFIGS[family], **others.pop("config", {})}
    taken.take(config, weights)
    assert set(weights) == kept
    return taken.build(config)


def model_of(family: str) -> Any:
    """Return a random model of a family."""
    config = deepcopy(CONFIGS[family])
    model_class, arguments = _get_classes(config)
    mx.random.seed(3)
    return model_class(arguments.from_dict(config))


@pytest.mark.parametrize("family", CONFIGS)
def test_head_computes_the_published_formula(family: str) -> None:
    """In one pass, and token by token with its KV."""
    arrays = head_arrays(family)
    head = built(family, arrays)
    source = np.random.default_rng(1)
    states, embedded = (source.standard_normal((9, 64)) for _ in range(2))
    expected = states_of(family, arrays, states, embedded)
    given = [mx.array(x[None].astype(np.float32)) for x in (states, embedded)]
    (cache,) = MtpHead(head, None, mx.array).new_cache()
    at_once = head(*given, cache)[0]
    (cache,) = MtpHead(head, None, mx.array).new_cache()
    one_by_one = [head(given[0][:, place : place + 1], given[1][:, place : place + 1], cache) for place in range(9)]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.array(at_once), expected, atol=2e-4)
    np.testing.assert_allclose(np.array(mx.concatenate(one_by_one, axis=1)[0]), expected, atol=2e-4)


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5", "qwen3_5_moe"])
def test_norms_of_a_published_checkpoint_are_stored_less_one(family: str) -> None:
    """A convolution that has the layout of publication shows it, as it does in mlx-lm."""
    arrays = head_arrays(family)
    less = {name: array - 1 if array.ndim == 1 else array for name, array in arrays.items()}
    convolution = {"model.layers.0.linear_attn.conv1d.weight": mx.zeros((64, 1, 4))}
    one, other = built(family, arrays), built(family, less, **convolution)
    given = [mx.random.normal((1, 5, 64)) for _ in range(2)]
    assert mx.allclose(one(*given, None), other(*given, None), atol=1e-5).item()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_head_is_read(bits: int) -> None:
    """Modules with scales are quantised, and each shows its bits; the configuration has the size of a group."""
    arrays = {name: mx.array(array) for name, array in head_arrays("mimo").items()}
    quantised, plain = dict(arrays), dict(arrays)
    for name, array in arrays.items():
        if name.endswith(("proj.weight",)):
            parts = mx.quantize(array, group_size=32, bits=bits)
            stem = name.removesuffix("weight")
            quantised |= dict(zip((name, f"{stem}scales", f"{stem}biases"), parts, strict=True))
            plain[name] = mx.dequantize(*parts, group_size=32, bits=bits)
    settings = {"quantization": {"group_size": 32, "bits": 4}}
    taken = TakenHead()
    taken.take({**CONFIGS["mimo"], **settings}, quantised)
    given = [mx.random.normal((1, 5, 64)) for _ in range(2)]
    head: Any = taken.build({**CONFIGS["mimo"], **settings})
    expected = built("mimo", plain)
    assert mx.allclose(head(*given, None), expected(*given, None), atol=1e-3).item()


def test_head_in_deepseeks_eight_bit_floats_is_read() -> None:
    """Each block of 128 by 128 numbers has a factor; mlx-lm's `sanitize` dequantises it."""
    arrays = {name: mx.array(array) for name, array in head_arrays("deepseek_v3").items()}
    stored, plain = dict(arrays), dict(arrays)
    for name, array in arrays.items():
        if array.ndim == 2 and "gate.weight" not in name:
            stored[name] = mx.to_fp8(array * 2)
            stored[f"{name}_scale_inv"] = mx.full((1, (array.shape[1] + 127) // 128), 0.5)
            plain[name] = mx.from_fp8(stored[name], dtype=mx.bfloat16) * 0.5
    given = [mx.random.normal((1, 5, 64)) for _ in range(2)]
    head, expected = built("deepseek_v3", stored), built("deepseek_v3", plain)
    assert mx.allclose(head(*given, None), expected(*given, None), atol=1e-2).item()


def test_checkpoint_without_a_head_says_so() -> None:
    """Of a family that has none, and of one that may have."""
    for config in (TINY["llama"], CONFIGS["mimo"]):
        taken = TakenHead()
        weights = {"model.norm.weight": mx.ones(4)}
        taken.take(config, weights)
        with pytest.raises(Unbuilt, match=NO_HEAD):
            taken.build(config)
        assert weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.mtp_layers.0.input_proj.weight": None}, "input_proj|project.weight"),
        ({"model.mtp_layers.0.input_proj.weight": np.zeros((3, 3), np.float32)}, "shape"),
        ({"model.mtp_layers.0.self_attn.q_proj.qweight": np.zeros(3, np.float32)}, "qweight"),
    ],
    ids=["missing", "shape", "unknown"],
)
def test_head_that_cannot_be_built_says_why(change: dict[str, Any], said: str) -> None:
    """The model is used without it."""
    arrays = {name: array for name, array in {**head_arrays("mimo"), **change}.items() if array is not None}
    with pytest.raises(Unbuilt, match=f"cannot be built: .*({said})"):
        built("mimo", arrays)


def test_head_is_not_used_with_an_adapter(tmp_path: Path) -> None:
    """It was not trained with it; its weights are not kept then."""
    path = model_with_head(tmp_path, "mimo")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps({"num_layers": 1, "lora_parameters": lora}))
    layer = "model.layers.1.self_attn.q_proj."
    parts = {f"{layer}lora_a": mx.ones((64, 2)), f"{layer}lora_b": mx.ones((2, 64))}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), parts)
    (_, plain), (_, adapted) = run(start(path)), run(start(path, adapter=adapter))
    assert isinstance(plain.model.mtp, MtpHead)
    assert adapted.model.mtp == "the MTP head of its checkpoint was not trained with the adapter"
    assert plain.nbytes - adapted.nbytes == nbytes(arrays_of(plain.model.mtp.head)) - 4 * 256


def test_head_is_not_used_by_a_model_of_several_machines(tmp_path: Path) -> None:
    path = model_with_head(tmp_path, "mimo")
    part = copy.copy(WHOLE)  # one of several parts, which is the whole
    steps = load(identify("part", path, None), 0, lambda: 0.0, shard=part)
    assert run(steps)[1].model.mtp == "a model of several machines uses no MTP head"


def test_head_without_numbers_is_not_used() -> None:
    """Its trial shows it when the model is loaded."""
    arrays = head_arrays("mimo")
    arrays["model.mtp_layers.0.final_layernorm.weight"] *= np.nan
    with pytest.raises(Unbuilt, match="no numbers"):
        list(trying_head(built("mimo", arrays), model_of("mimo")))
