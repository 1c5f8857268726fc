"""LoRA adapters: other answers than the base, a key and prefixes of their own, and typed errors for damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_sidecar
from mlx_sidecar import Client
from tests.support.models import copy_of_embedded
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=40, tokens_hint=200)).completion()


def _adapter(path: Path, scale: float = 20.0, seed: int = 3) -> str:
    """Write an adapter in mlx-lm's format for the embedded model, and return its directory."""
    path.mkdir()
    config = json.loads((copy_of_embedded(path.parent, f"base-of-{path.name}") / "config.json").read_text())
    hidden, layer = config["hidden_size"], config["num_hidden_layers"] - 1
    lora = {"rank": 4, "scale": scale, "dropout": 0.0, "keys": ["self_attn.o_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({"num_layers": 1, "lora_parameters": lora}))
    mx.random.seed(seed)
    name = f"model.layers.{layer}.self_attn.o_proj"
    arrays = {f"{name}.lora_a": mx.random.normal((hidden, 4)), f"{name}.lora_b": mx.random.normal((4, hidden))}
    mx.save_safetensors(str(path / "adapters.safetensors"), arrays)
    return str(path)


def test_adapter_shares_no_prefix_with_its_base_model(client: Client, folder: Path) -> None:
    """Answers with an adapter differ cold and warm; a copy of the adapter is the same adapter."""
    model, adapter = str(copy_of_embedded(folder)), _adapter(folder / "lora")
    base = client.complete(model, PROMPT, max_tokens=12, ignore_eos=True)
    cold = client.complete(model, PROMPT, max_tokens=12, ignore_eos=True, adapter=adapter)
    warm = client.complete(model, PROMPT, max_tokens=12, ignore_eos=True, adapter=adapter)
    copy = str(shutil.copytree(adapter, folder / "copy"))
    copied = client.complete(model, PROMPT, max_tokens=12, ignore_eos=True, adapter=copy)
    assert cold.text != base.text
    assert (base.usage.cached_tokens, cold.usage.cached_tokens) == (0, 0)
    assert (warm.text, copied.text) == (cold.text, cold.text)
    assert warm.usage.cached_tokens == copied.usage.cached_tokens > 0
    assert client.complete(model, PROMPT, max_tokens=12, ignore_eos=True).text == base.text


def test_base_weights_count_once_for_each_adapter(client: Client, folder: Path) -> None:
    """Each adapter has its own entry and fingerprint, and the base model's name drops them all."""
    model = str(copy_of_embedded(folder))
    adapters = ["", _adapter(folder / "one"), _adapter(folder / "two", seed=4)]
    client.invalidate_all(weights=True, prefixes=False)
    before = client.stats().model_cache.total_memory_bytes
    infos = [client.load(model, adapter=adapter, skip_warmup=True) for adapter in adapters]
    assert len({info.fingerprint for info in infos}) == 3
    assert infos[1].size_bytes > infos[0].size_bytes
    assert client.stats().model_cache.total_memory_bytes - before == sum(info.size_bytes for info in infos)
    assert client.invalidate_model(model).models == (model,)
    assert client.stats().model_cache.total_memory_bytes == before


def test_rewritten_adapter_is_another_model(client: Client, folder: Path) -> None:
    """The next request detects the rewritten adapter."""
    model, adapter = str(copy_of_embedded(folder)), _adapter(folder / "lora")
    first = client.complete(model, PROMPT, max_tokens=12, ignore_eos=True, adapter=adapter)
    shutil.rmtree(adapter)
    shutil.rmtree(folder / "base-of-lora")
    _adapter(folder / "lora", seed=5)
    second = client.complete(model, PROMPT, max_tokens=12, ignore_eos=True, adapter=adapter)
    assert second.text != first.text
    assert second.usage.cached_tokens == 0


@pytest.mark.parametrize("damage", ["cut", "another model's", "no config", "bad config", "not there"])
def test_damaged_adapter_fails_and_its_base_serves(client: Client, folder: Path, damage: str) -> None:
    """The error's message says what is wrong with the adapter."""
    model, adapter = str(copy_of_embedded(folder)), Path(_adapter(folder / "lora"))
    weights, config = adapter / "adapters.safetensors", adapter / "adapter_config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif damage == "another model's":
        mx.save_safetensors(str(weights), {"model.layers.99.self_attn.o_proj.lora_a": mx.ones((8, 4))})
    elif damage == "no config":
        config.unlink()
    elif damage == "bad config":
        config.write_text('{"num_layers": "all"}')
    else:
        shutil.rmtree(adapter)
    kind = mlx_sidecar.ModelNotFound if damage.startswith("no") else mlx_sidecar.ModelCorrupt
    with pytest.raises(kind):
        client.load(model, adapter=str(adapter))
    assert client.complete(model, PROMPT, max_tokens=1).usage.completion_tokens == 1
