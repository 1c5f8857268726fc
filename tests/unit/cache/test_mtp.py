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
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes

from daemon.cache.identity import identify
from daemon.cache.mlx.loader import LoadSetup, load
from daemon.cache.mlx.module_size import arrays as arrays_of
from daemon.cache.mlx.module_size import nbytes
from daemon.cache.mlx.mtp import NO_HEAD, MtpHead, Unbuilt, trying_head
from daemon.cache.mlx.mtp_checkpoints import TakenHead
from daemon.cache.mlx.shard import WHOLE
from daemon.shared.slices import drain
from tests.support.heads import CONFIGS, head_arrays, model_with_head
from tests.support.models import TINY
from tests.unit.cache.head_formula import states_of
from tests.unit.cache.loads import run, start


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
    (cache,) = MtpHead(head, None, mx.array, mx.array).new_cache()
    at_once = head(*given, cache)[0]
    (cache,) = MtpHead(head, None, mx.array, mx.array).new_cache()
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


def tried(family: str) -> MtpHead:
    """Return a tried head beside its model."""
    return drain(trying_head(built(family, head_arrays(family)), model_of(family)))


@pytest.mark.parametrize(("family", "before"), [("mimo", True), ("mimo_v2_flash", False), ("qwen3_next", False)])
def test_head_takes_states_before_or_after_the_last_norm(family: str, before: bool) -> None:
    """As the published implementation of its family. The model's logits keep their bits, and its norm its place."""
    model = model_of(family)
    model.model.norm.weight = mx.random.normal(model.model.norm.weight.shape)
    head = drain(trying_head(built(family, head_arrays(family)), model))
    tokens = mx.array([[5, 6, 7, 8]])
    given, after = head.trunk(tokens, make_prompt_cache(model)), model.model(tokens, make_prompt_cache(model))
    assert mx.array_equal(model.model.norm(given) if before else given, after).item()
    assert mx.allclose(given, after).item() is not before
    assert mx.array_equal(head.logits(given), model(tokens, make_prompt_cache(model))).item()


def test_head_with_a_window_keeps_no_more_than_it_sees() -> None:
    """Two heads of 16 numbers a key and 12 a value; the indexer of another one has keys beside those of attention."""
    assert tried("mimo_v2_flash").kv_bytes(5000) == (6 + 1) * 2 * (16 + 12) * 4
    assert tried("deepseek_v32").kv_bytes(256) == 256 * (16 + 8 + 2 * 16) * 4


@pytest.mark.parametrize("spelling", [{}, {"mtp_hybrid_override_pattern": "*E"}, {"mtp_layers_block_type": None}])
def test_blocks_of_a_head_are_named_in_two_ways(monkeypatch: pytest.MonkeyPatch, spelling: dict[str, Any]) -> None:
    """As a list, as a text, and not at all where they are the usual ones."""
    config = {**CONFIGS["nemotron_h"], "mtp_layers_block_type": None} if spelling else CONFIGS["nemotron_h"]
    monkeypatch.setitem(CONFIGS, "nemotron_h", {**config, **spelling})
    assert [block.block_type for block in built("nemotron_h", head_arrays("nemotron_h")).blocks] == ["*", "E"]


def test_head_with_a_recurrent_block_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state could not go back to before a guess."""
    monkeypatch.setitem(CONFIGS, "nemotron_h", {**CONFIGS["nemotron_h"], "mtp_hybrid_override_pattern": "ME"})
    with pytest.raises(Unbuilt, match="keeps no keys and values of single tokens"):
        built("nemotron_h", head_arrays("nemotron_h"))


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
    steps = load(identify("part", path, None), 0, LoadSetup(lambda: 0.0, shard=part))
    assert run(steps)[1].model.mtp == "a model of several machines uses no MTP head"


def test_head_without_numbers_is_not_used() -> None:
    """Its trial shows it when the model is loaded."""
    arrays = head_arrays("mimo")
    arrays["model.mtp_layers.0.final_layernorm.weight"] *= np.nan
    with pytest.raises(Unbuilt, match="no numbers"):
        list(trying_head(built("mimo", arrays), model_of("mimo")))


def test_head_that_its_trial_refuses_is_not_billed(tmp_path: Path) -> None:
    """Its arrays go with the end of the load."""
    path = model_with_head(tmp_path, "mimo")
    weights = mx.load(str(path / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.mtp_layers.0.final_layernorm.weight"] *= mx.nan
    mx.eval(weights)
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    _, loaded = run(start(path))
    assert "no numbers" in str(loaded.model.mtp)
    assert loaded.nbytes == loaded.model.nbytes == nbytes(arrays_of(loaded.model.model))
