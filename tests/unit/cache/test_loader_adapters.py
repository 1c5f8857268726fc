"""An adapter loads with its model; half an adapter is refused."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from daemon.shared.errors import Reason
from tests.support.builders import tiny_llama
from tests.unit.cache.loads import refusal, run, start


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def _write_adapter(path: Path, scale: float) -> Path:
    path.mkdir()
    lora = {"rank": 2, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({"num_layers": 1, "lora_parameters": lora}))
    arrays = {
        "model.layers.2.self_attn.q_proj.lora_a": mx.ones((32, 2)),
        "model.layers.2.self_attn.q_proj.lora_b": mx.ones((2, 32)),
    }
    mx.save_safetensors(str(path / "adapters.safetensors"), arrays)
    return path


def test_adapter_is_loaded_and_counted_with_its_model(path: Path, tmp_path: Path) -> None:
    _, plain = run(start(path))
    _, adapted = run(start(path, adapter=_write_adapter(tmp_path / "adapter", 20.0)))

    assert adapted.nbytes == plain.nbytes + 2 * 32 * 2 * 4
    ids = mx.array([[1, 2, 3]])
    assert not mx.array_equal(plain.model.model(ids), adapted.model.model(ids)).item()


@pytest.mark.parametrize("missing", ["lora_a", "lora_b"])
def test_half_an_adapter(path: Path, tmp_path: Path, missing: str) -> None:
    """mlx-lm leaves random numbers or zeros there, and the answer would be that of another model."""
    adapter = _write_adapter(tmp_path / "adapter", 1.0)
    file = str(adapter / "adapters.safetensors")
    arrays = mx.load(file)
    assert isinstance(arrays, dict)
    mx.save_safetensors(file, {name: array for name, array in arrays.items() if not name.endswith(missing)})

    error = refusal(path, adapter)

    assert error.reason is Reason.MODEL_CORRUPT
    assert "lacks 1 of the 2 tensors" in error.message
    assert error.message.endswith(f"It has no model.layers.2.self_attn.q_proj.{missing}")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_empty_adapter_is_corrupt(path: Path, tmp_path: Path, kind: str) -> None:
    """Its keys match no layer, so nothing is missing; the answers would be those of the base model."""
    adapter = _write_adapter(tmp_path / "adapter", 1.0)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_parameters"]["keys"] = ["none"]
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fine_tune_type": kind}))
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {})

    error = refusal(path, adapter)

    assert (error.reason, "has no tensors" in error.message) == (Reason.MODEL_CORRUPT, True)


@pytest.mark.parametrize("text", ["", "{}", '{"num_layers": 1}', '{"num_layers": "x", "lora_parameters": {}}', "[]"])
def test_adapter_without_config_is_corrupt(path: Path, tmp_path: Path, text: str) -> None:
    adapter = _write_adapter(tmp_path / "adapter", 1.0)
    (adapter / "adapter_config.json").write_text(text)

    assert refusal(path, adapter).reason is Reason.MODEL_CORRUPT
