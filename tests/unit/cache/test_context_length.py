"""The context length: RoPE scaling counts once, in every spelling."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.cache.context_length import MOST, context_length, most_positions


def scaled(kind: str, factor: float, original: int | None = None, name: str = "rope_type") -> dict[str, Any]:
    """Return a RoPE scaling."""
    return {name: kind, "factor": factor} | ({} if original is None else {"original_max_position_embeddings": original})


def config(stated: int, scaling: Any = None, key: str = "rope_scaling", **others: Any) -> dict[str, Any]:
    """Return a configuration with a stated length and a scaling."""
    return {"model_type": "llama", "max_position_embeddings": stated, key: scaling, **others}


def test_yarn() -> None:
    assert context_length(config(128, scaled("yarn", 4, 128))) == 512


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["rope_type", "type"])
@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "deepseek_yarn"])
def test_scaling_counts_in_every_spelling(key: str, name: str, kind: str) -> None:
    assert context_length(config(4096, scaled(kind, 4.0, name=name), key)) == 16384
    assert context_length(config(4096, scaled(kind, 4.0, 4096, name=name), key)) == 16384
    assert context_length(config(16384, scaled(kind, 4.0, 4096, name=name), key)) == 16384


@pytest.mark.parametrize(
    ("stated", "scaling", "length"),
    [
        (40960, scaled("yarn", 4.0, 32768), 131072),  # Qwen 3, as its card says
        (163840, scaled("yarn", 40, 4096), 163840),  # DeepSeek V3
        (131072, scaled("yarn", 32.0, 4096), 131072),  # gpt-oss
        (262144, scaled("yarn", 64.0, 4096), 262144),  # Kimi K2
        (131072, scaled("llama3", 8.0, 8192), 131072),  # Llama 3.1
        (131072, scaled("llama3", 32.0, 8192), 131072),  # Llama 3.2
        (8192, scaled("llama3", 8.0, 8192), 65536),  # a scaling that was added to a model by hand
        (32768, scaled("dynamic", 1.0), 32768),  # Hunyuan, which scales by alpha
        (131072, {"type": "su", "short_factor": [1.0], "long_factor": [4.0]}, 131072),  # Phi 3
        (131072, {"type": "longrope", "factor": 32.0, "original_max_position_embeddings": 4096}, 131072),
        (128000, {"rope_type": "default", "mrope_section": [16, 24, 24]}, 128000),  # Qwen 2.5 VL
        (128000, {"type": "mrope", "mrope_section": [16, 24, 24]}, 128000),
        (4096, {"rope_type": "proportional", "factor": 8.0}, 4096),
    ],
)
def test_known_models_get_their_length(stated: int, scaling: dict[str, Any], length: int) -> None:
    assert context_length(config(stated, scaling)) == length


def test_gemma_3_states_the_scaled_length() -> None:
    """In the old spelling, and with a scaling for each kind of layers."""
    linear = scaled("linear", 8.0)
    text = config(131072, linear, model_type="gemma3_text")
    assert context_length(text) == context_length({"model_type": "gemma3", "text_config": text}) == 131072
    layers = {"full_attention": linear, "sliding_attention": {"rope_type": "default"}}
    assert context_length(config(131072, layers, "rope_parameters", model_type="gemma3_text")) == 131072


def test_scaling_of_one_kind_of_layers_counts() -> None:
    """The layers with full attention limit the context; those with a window do not."""
    layers = {"full_attention": scaled("yarn", 8.0, 8192), "sliding_attention": {"rope_type": "default"}}
    assert context_length(config(8192, layers, "rope_parameters")) == 65536


def test_original_length_may_stand_beside_the_scaling() -> None:
    """As in Phi 3."""
    scaling = {"rope_type": "yarn", "factor": 2.0}
    assert context_length(config(8192, scaling, original_max_position_embeddings=4096)) == 8192


@pytest.mark.parametrize("name", ["text_config", "language_config", "llm_config"])
def test_nested_configuration_counts(name: str) -> None:
    assert context_length({"model_type": "x", name: config(128, scaled("yarn", 4, 128))}) == 512
    assert context_length({**config(128), name: {"rope_scaling": scaled("yarn", 4, 128)}}) == 512


@pytest.mark.parametrize(
    "broken", [None, 7, [], "yarn", {}, {"type": 3, "factor": 4}, {"type": "yarn"}, scaled("yarn", float("nan"))]
)
def test_scaling_without_sense_is_none(broken: Any) -> None:
    assert context_length(config(4096, broken)) == 4096


def test_configuration_without_a_length_has_none() -> None:
    assert context_length({"model_type": "mamba", "rope_scaling": scaled("yarn", 4, 128)}) == 0
    assert context_length(config(True)) == context_length(config(-1)) == context_length(config(2**31)) == 0


@pytest.mark.parametrize("kind", ["gpt2", "gpt_bigcode"])
def test_learned_positions_have_an_end(kind: str) -> None:
    """Others turn by an angle, which any position has."""
    assert most_positions({"model_type": kind, "n_positions": 1024}) == 1024
    assert most_positions({"model_type": kind, "n_positions": "x"}) is None
    assert most_positions({"model_type": "phi", "n_positions": 1024}) is None


NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))


@settings(deadline=None)
@given(stated=NUMBERS, kind=st.sampled_from(["yarn", "linear", "llama3", "su", "x"]), factor=NUMBERS, original=NUMBERS)
def test_any_numbers_give_a_length(stated: Any, kind: str, factor: Any, original: Any) -> None:
    """The configuration is not trusted."""
    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    assert 0 <= context_length(config(stated, scaling)) <= MOST
