"""The key of a model is its content: a changed file is another model, and a damaged file is refused unread."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.identity import ModelKey, ModelSource, identify
from daemon.cache.model_files import private_copy
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import float_tensors, safetensors, write_adapter, write_model


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def _refusal(path: Path, adapter: Path | None = None) -> SidecarError:
    with pytest.raises(SidecarError) as caught:
        identify("org/name", path, adapter)
    return caught.value


def _source(path: Path, **config: Any) -> ModelSource:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return identify("org/name", path)


def test_model_identity_has_name_size_and_key(model: Path) -> None:
    source = identify("org/name", model)

    assert (source.name, source.path, source.architecture) == ("org/name", model, "llama")
    assert source.size_bytes == (model / "model.safetensors").stat().st_size
    assert source.key == identify("another name", model).key
    assert str(source.key) == source.key.weights[:16]


def test_the_embedded_model_is_sound() -> None:
    source = identify("embedded", EMBEDDED_PATH)

    assert source.architecture == "llama"
    assert source.num_layers > 0
    assert source.context_length > 0
    assert source.vocab_size > 0
    assert source.estimated_kv_bytes_per_token > 0


def test_same_files_by_another_path_are_the_same_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)

    assert identify("a", model).key == identify("b", tmp_path / "link").key


@pytest.mark.parametrize("change", ["weights", "config", "more", "renamed"])
def test_a_change_of_the_content_is_another_model(model: Path, change: str) -> None:
    before = identify("a", model)
    weights = model / "model.safetensors"
    if change == "weights":
        stat = weights.stat()
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        os.utime(weights, ns=(0, stat.st_mtime_ns))
    elif change == "config":
        (model / "config.json").write_text('{"model_type": "llama", "rope_theta": 1}')
    elif change == "more":
        (model / "model-2.safetensors").write_bytes(float_tensors(more=(1,)))
    else:
        weights.rename(model / "model-1.safetensors")

    assert identify("a", model).key.weights != before.key.weights


@pytest.mark.parametrize("change", ["copied", "replaced", "touched", "template", "consolidated", "original"])
def test_irrelevant_files_keep_the_model_key(model: Path, tmp_path: Path, change: str) -> None:
    before = identify("a", model)
    weights, path = model / "model.safetensors", model
    if change == "copied":
        path = Path(shutil.copytree(model, tmp_path / "copy"))
    elif change == "replaced":
        Path(shutil.copy(weights, model / "copy")).replace(weights)
    elif change == "touched":
        os.utime(weights, ns=(0, 1))
    elif change == "consolidated":
        shutil.copy(weights, model / "consolidated.safetensors")
    elif change == "original":
        shutil.copytree(model, model / "original")
    else:
        (model / "chat_template.jinja").write_text("{{ messages }}")

    after = identify("b", path)
    assert (after.key, after.size_bytes, len(after.weights)) == (before.key, before.size_bytes, 1)


def test_a_file_that_is_rewritten_is_read_again(model: Path) -> None:
    weights = model / "model.safetensors"
    identify("a", model)
    weights.write_bytes(safetensors(b"broken"))
    os.utime(weights, ns=(0, 5))

    assert _refusal(model).reason is Reason.MODEL_CORRUPT


def test_an_adapter_is_part_of_the_key_and_the_size(model: Path, tmp_path: Path) -> None:
    plain = identify("a", model)
    one = identify("a", model, write_adapter(tmp_path / "one"))
    other = write_adapter(tmp_path / "two")
    assert identify("a", model, other).key == one.key
    (other / "adapter_config.json").write_text('{"num_layers": 2}')
    two = identify("a", model, other)

    assert one.key.weights == two.key.weights == plain.key.weights
    assert len({plain.key, one.key, two.key}) == 3
    assert one.size_bytes == plain.size_bytes + (tmp_path / "one" / "adapters.safetensors").stat().st_size
    assert str(one.key) == f"{one.key.weights[:16]}+{one.key.adapter[:16]}"


def test_an_adapter_that_lacks_files_is_not_found(model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()

    error = _refusal(model, tmp_path / "adapter")

    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "adapter")
    assert "no adapter_config.json and no adapters.safetensors" in error.message


def test_adapter_with_damaged_weights_is_corrupt(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapters.safetensors").write_bytes(b"short")

    assert _refusal(model, adapter).reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pytorch_model.bin", "only .bin weights, which can run code"),
        ("consolidated.PTH", "only .pth weights, which can run code"),
        ("weights.npz", "only .npz weights, which can run code"),
        ("model-q4.gguf", "GGUF"),
        ("sub/model.safetensors", "no model*.safetensors"),
        ("weights.safetensors", "no model*.safetensors"),
    ],
)
def test_unreadable_weight_formats_are_never_opened(model: Path, name: str, why: str) -> None:
    (model / "sub").mkdir()
    (model / "model.safetensors").unlink()
    os.mkfifo(model / name)  # to open it would wait for ever
    if name.endswith(".safetensors"):
        (model / name).unlink()
        (model / name).write_bytes(float_tensors(w=(1,)))

    error = _refusal(model)

    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert why in error.message
    assert "mlx_lm.convert" in error.message


def test_files_that_are_not_loaded_are_not_opened(model: Path) -> None:
    """To open a FIFO would wait for ever, and these would be no valid weights."""
    (model / "original").mkdir()
    for name in ("._model.safetensors", "consolidated.safetensors", "original/model.safetensors"):
        os.mkfifo(model / name)
    os.mkfifo(model / "._config.json")

    assert len(identify("a", model).weights) == 1
    with private_copy(model) as copy:
        assert not (copy / "._config.json").exists()


def test_pickles_beside_safetensors_are_ignored(model: Path) -> None:
    os.mkfifo(model / "pytorch_model.bin")

    assert identify("a", model).size_bytes > 0


def test_one_damaged_shard_condemns_the_model(model: Path) -> None:
    (model / "model-2.safetensors").write_bytes(float_tensors(w=(9, 9))[:-5])

    error = _refusal(model)

    assert error.reason is Reason.MODEL_CORRUPT
    assert "model-2.safetensors is truncated" in error.message


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"model_type": 3}', "[" * 100_000, '{"a":' * 100_000, "\x00"],
    ids=["empty", "cut", "list", "null", "number", "untyped", "mistyped", "brackets", "braces", "zero"],
)
def test_invalid_config_json_is_corrupt(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)

    assert _refusal(model).reason is Reason.MODEL_CORRUPT


def test_a_missing_config_is_explained(model: Path) -> None:
    (model / "config.json").unlink()

    assert "is it a model directory?" in _refusal(model).message


def test_config_that_is_a_pipe_is_not_waited_for(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")

    assert _refusal(model).reason is Reason.MODEL_CORRUPT


def test_a_huge_config_is_not_read(model: Path) -> None:
    with (model / "config.json").open("wb") as file:
        file.truncate(16_000_001)

    assert "larger than 16 MB" in _refusal(model).message


def test_vanished_file_is_corrupt_unreadable_a_fault(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: OSError) -> None:
        def fail(*_: object) -> bytes:
            raise error

        monkeypatch.setattr("daemon.cache.identity.read_header", fail)

    failing(FileNotFoundError(2, "No such file or directory"))
    assert _refusal(model).reason is Reason.MODEL_CORRUPT
    failing(PermissionError(13, "Permission denied"))
    error = _refusal(model)
    assert error.reason is Reason.MACHINE_FAULT
    assert "cannot be read: Permission denied" in error.message


@pytest.mark.parametrize("key", ["model_file", "trust_remote_code"])
def test_nested_custom_code_request_is_unsupported(model: Path, key: str) -> None:
    nested = {"text_config": {"parts": [[{key: "evil.py"}]]}}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **nested}))

    error = _refusal(model)

    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert key in error.message


@pytest.mark.parametrize("depth", [100, 500, 900])
def test_custom_code_search_covers_nested_configs(model: Path, depth: int) -> None:
    deep = '{"a":' * depth + '{"model_file": "evil.py"}' + "}" * depth
    (model / "config.json").write_text('{"model_type": "llama", "deep": ' + deep + "}")

    assert _refusal(model).reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x" * 65, "a b", "ä"])
def test_invalid_model_type_is_unsupported(model: Path, name: str) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": name}))

    assert _refusal(model).reason is Reason.MODEL_UNSUPPORTED


def test_config_figures_are_read_under_all_names(model: Path) -> None:
    flat = _source(model, n_layer=3, n_positions=64, vocab_size=7)
    nested = _source(model, text_config={"num_hidden_layers": 4, "max_position_embeddings": 128})

    assert (flat.num_layers, flat.context_length, flat.vocab_size) == (3, 64, 7)
    assert (nested.num_layers, nested.context_length, nested.vocab_size) == (4, 128, 0)


@pytest.mark.parametrize("value", [None, "3", -3, 0, True, 3.5, [3]])
def test_implausible_config_figures_count_as_unknown(model: Path, value: object) -> None:
    source = _source(model, num_hidden_layers=value, text_config="none")

    assert source.num_layers == 0
    assert source.estimated_kv_bytes_per_token == 0


@pytest.mark.parametrize("count", [10_001, 10**9, 10**400])
@pytest.mark.parametrize("nest", [lambda config: config, lambda config: {"text_config": [config]}])
@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_attention_heads", "num_experts", "num_loops"])
def test_config_of_endless_modules_is_corrupt(model: Path, key: str, count: int, nest: Any) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **nest({key: count})}))

    error = _refusal(model)

    assert error.reason is Reason.MODEL_CORRUPT
    assert f"absurd {key}" in error.message


def test_kv_estimate_uses_grouped_queries_and_wide_values(model: Path) -> None:
    grouped = _source(model, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    largest = _source(model, num_hidden_layers=10_000, num_attention_heads=10_000, head_dim=2**31 - 1)

    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    wide = [_source(model, num_hidden_layers=2, **heads, **{key: "float32"}) for key in ("torch_dtype", "dtype")]

    assert grouped.estimated_kv_bytes_per_token == 2 * 2 * 2 * 2 * 8
    assert [source.estimated_kv_bytes_per_token for source in wide] == [2 * 4 * 2 * 2 * 8] * 2
    assert largest.estimated_kv_bytes_per_token == 2 * 2 * 10_000 * 10_000 * (2**31 - 1) < 2**63


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are text there")
def test_undecodable_file_name_is_digested(model: Path) -> None:
    (model / os.fsdecode(b"model-\xff.safetensors")).write_bytes(float_tensors(w=(1,)))

    assert isinstance(identify("a", model).key, ModelKey)
