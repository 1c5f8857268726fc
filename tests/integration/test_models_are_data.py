"""Nothing that a model directory holds is ever run, and every kind of model that cannot be loaded has its reason."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import mlx_sidecar
from mlx_sidecar import Client
from tests.support.models import copy_of_embedded

ROOT = Path(__file__).resolve().parents[2]


class Trap:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._trace,))


def _booby_trapped(folder: Path, **config: Any) -> tuple[Path, Path]:
    """Return a model whose every file that could be run leaves a trace, and that trace."""
    model, trace = copy_of_embedded(folder, **config), folder / "trace"
    code = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Evil: pass\n"
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (model / name).write_text(code)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trace)))
    return model, trace


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_auto_map_of_known_architecture_never_runs(client: Client, folder: Path) -> None:
    """`auto_map` in config.json changes no answer of a known architecture."""
    auto_map = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    model, trace = _booby_trapped(folder, auto_map=auto_map)
    answer = client.complete(str(model), "The code of", max_tokens=8)
    assert answer.text == client.complete("embedded", "The code of", max_tokens=8).text
    assert not trace.exists()


def test_auto_map_of_a_tokenizer_never_runs(client: Client, folder: Path) -> None:
    """`auto_map` in tokenizer_config.json never runs, with and without a tokenizer class."""
    model, trace = _booby_trapped(folder)
    settings = model / "tokenizer_config.json"
    _change(settings, auto_map={"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]})
    for extra in ({}, {"tokenizer_class": "Evil"}, {"trust_remote_code": True}):
        _change(settings, **extra)
        try:
            client.complete(str(model), "The code of", max_tokens=1)
        except mlx_sidecar.ModelCorrupt:
            assert extra
        assert not trace.exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "evil", "auto_map": {"AutoModel": "modeling_evil.Evil"}}, "auto_map"),
        ({"model_type": "evil"}, "not supported by this mlx-lm"),
        ({"model_type": "../evil"}, "no name"),
        ({"model_type": "os.path"}, "not supported by this mlx-lm"),
        ({"model_file": "evil.py"}, "model_file"),
        ({"vision_config": {"trust_remote_code": True}}, "trust_remote_code"),
    ],
)
def test_model_that_needs_its_own_code_is_refused(
    client: Client, folder: Path, config: dict[str, Any], says: str
) -> None:
    """The error names the key that requires custom code; nothing is loaded or evicted."""
    model, trace = _booby_trapped(folder, **config)
    evictions = client.stats().model_cache.evictions
    with pytest.raises(mlx_sidecar.ModelUnsupported, match=says):
        client.load(str(model))
    assert client.stats().model_cache.evictions == evictions
    assert not trace.exists()


def test_pickle_weights_are_refused_unread(client: Client, folder: Path) -> None:
    """Reading a pickle would run its code, so weights as pickles are refused."""
    model, trace = _booby_trapped(folder)
    (model / "model.safetensors").unlink()
    with pytest.raises(mlx_sidecar.ModelUnsupported, match="can run code"):
        client.load(str(model))
    assert not trace.exists()


def test_gguf_is_refused_by_its_name(client: Client, folder: Path) -> None:
    """The error for GGUF files says what to use instead."""
    model = copy_of_embedded(folder)
    (model / "model.safetensors").rename(model / "model-q4.gguf")
    with pytest.raises(mlx_sidecar.ModelUnsupported, match=r"GGUF.*mlx_lm\.convert"):
        client.load(str(model))
