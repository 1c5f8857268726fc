"""A model directory with FIFOs, devices and links: the call fails with the name of the file, and other models go on."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlx_sidecar
from daemon.cache import model_files
from daemon.cache.identity import identify
from daemon.cache.model_files import allowed, opened, private_copy, read
from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.prompt import tokenizers as module
from daemon.engine.prompt.chat_templates import Templates
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar import Client
from tests.support.builders import write_adapter, write_model
from tests.support.models import copy_of_embedded

DESCRIPTIONS = ["config.json", "hf_quant_config.json"]
OF_TOKENIZERS = [
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "additional_chat_templates/tools.jinja", "vocab.json", "merges.txt", "tokenizer.model",
]  # fmt: skip
WEIGHTS = ["model.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
FILES = [*DESCRIPTIONS, *OF_TOKENIZERS, *WEIGHTS]
ADAPTER_FILES = ["adapter_config.json", "adapters.safetensors"]


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _directory(file: Path) -> None:
    file.mkdir()


def _socket(file: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(file))
    listening.close()


def _link_to_nothing(file: Path) -> None:
    file.symlink_to("nothing")


def _link_to_itself(file: Path) -> None:
    file.symlink_to(file.name)


def _link_to_fifo(file: Path) -> None:
    os.mkfifo(file.with_name("fifo"))
    file.symlink_to("fifo")


KINDS: dict[str, Callable[[Path], None]] = {
    "is a FIFO": _fifo,
    "is a device": _device,
    "is a directory": _directory,
    "is a socket": _socket,
    "is a link to nothing": _link_to_nothing,
    "is a link that leads to itself|cannot be read|symbolic links": _link_to_itself,
    "is a FIFO and": _link_to_fifo,
}


def _put(folder: Path, name: str, kind: Callable[[Path], None]) -> None:
    """Put something in the place of a file."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    kind(file)


@pytest.mark.parametrize("name", FILES)
def test_fifo_in_a_model_is_refused_and_others_serve(client: Client, folder: Path, name: str) -> None:
    """A library would have waited for it: with a lock held, on a thread of a pool, or on the MLX thread."""
    model = copy_of_embedded(folder)
    _put(model, name, _fifo)

    with pytest.raises(mlx_sidecar.ModelCorrupt, match=f"{Path(name).name} is a FIFO"):
        client.complete(str(model), "The code of", max_tokens=2, timeout=60)

    assert client.complete("embedded", "The code of", max_tokens=2, timeout=60).usage.completion_tokens == 2


@pytest.mark.parametrize("says", KINDS)
def test_non_regular_tokenizer_file_is_refused(client: Client, folder: Path, says: str) -> None:
    """A link to /dev/zero would have filled the memory."""
    model = copy_of_embedded(folder)
    _put(model, "tokenizer.json", KINDS[says])

    with pytest.raises(mlx_sidecar.ModelCorrupt, match=says) as caught:
        client.complete(str(model), "The code of", max_tokens=2, timeout=60)

    assert "tokenizer.json" in str(caught.value) or "link" in says
    assert client.complete("embedded", "The code of", max_tokens=2, timeout=60).usage.completion_tokens == 2


@pytest.mark.parametrize("name", ADAPTER_FILES)
@pytest.mark.parametrize("says", KINDS)
def test_non_regular_adapter_file_is_refused(tmp_path: Path, name: str, says: str) -> None:
    model, adapter = write_model(tmp_path / "model"), write_adapter(tmp_path / "adapter")
    _put(adapter, name, KINDS[says])

    with pytest.raises(SidecarError, match=says) as caught:
        identify("model", model, adapter)

    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize("name", [*DESCRIPTIONS, "model.safetensors", "model-2.safetensors"])
@pytest.mark.parametrize("says", KINDS)
def test_non_regular_model_file_is_refused(tmp_path: Path, name: str, says: str) -> None:
    model = write_model(tmp_path / "model")
    _put(model, name, KINDS[says])

    with pytest.raises(SidecarError, match=says) as caught:
        identify("model", model)

    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize("name", [*DESCRIPTIONS, "model.safetensors"])
def test_file_in_a_cloud_drive_alone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """macOS shows its name and size. Reading it waits for a download, or fails with a deadlock, as iCloud pleases."""
    model = write_model(tmp_path / "model")
    (model / name).touch()
    told = Path.lstat

    def evicted(path: Path) -> Any:
        status = told(path)
        if path.name != name:
            return status
        return SimpleNamespace(st_mode=status.st_mode, st_flags=0x40000020)

    monkeypatch.setattr(Path, "lstat", evicted)
    with pytest.raises(SidecarError, match=f"{name} is in a cloud drive .*download it in Finder") as caught:
        identify("model", model)
    assert caught.value.reason is Reason.MACHINE_FAULT


def test_file_read_is_bounded_whatever_stat_reports(tmp_path: Path) -> None:
    """The size of the kernel's own files is 0, and they have content."""
    file = tmp_path / "tokenizer.json"
    file.write_bytes(bytes(1001))

    assert read(file, most=1001) == bytes(1001)
    with pytest.raises(SidecarError, match=r"tokenizer\.json has 1001 bytes and so is larger"):
        read(file, most=1000)
    status = Path("/proc/self/status")
    if status.exists():
        assert status.stat().st_size == 0
        with pytest.raises(SidecarError, match="is larger"):
            read(status, most=100)


def test_growing_file_is_copied_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may append to a file as fast as it is read."""
    monkeypatch.setattr(model_files, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(model_files, "_PIECE", 100)
    model = write_model(tmp_path / "model")
    growing = model / "tokenizer.json"
    growing.write_bytes(bytes(100))
    real = opened

    def growing_file(file: Path, roots: tuple[Path, ...] = ()) -> Any:
        source = real(file, roots)
        if file == growing:
            read_piece = source.read

            class Growing:
                def read(self, size: int) -> bytes:
                    with growing.open("ab") as end:
                        end.write(bytes(1000))
                    return read_piece(size)

                def fileno(self) -> int:
                    return source.fileno()

                def __enter__(self) -> Growing:
                    return self

                def __exit__(self, *_: object) -> None:
                    source.close()

            return Growing()
        return source

    monkeypatch.setattr(model_files, "opened", growing_file)

    with pytest.raises(SidecarError, match=r"tokenizer\.json is larger"), private_copy(model):
        raise AssertionError("it was copied")


@pytest.mark.parametrize("limit", ["COPIED_BYTES", "COPIED_FILES"])
def test_model_of_countless_small_files_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(model_files, limit, 10)
    model = write_model(tmp_path / "model")
    for number in range(11):
        (model / f"{number}.json").write_text("{}")

    with pytest.raises(SidecarError, match="files of") as caught, private_copy(model):
        raise AssertionError("it was copied")

    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_libraries_get_a_copy_without_code_or_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is removed when they have read it."""
    model = copy_of_embedded(folder)
    (model / "tokenization_evil.py").write_text("raise SystemExit")
    (model / "vocab.txt").symlink_to(model / "config.json")
    os.mkfifo(model / "notes.md")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    seen: list[tuple[Path, dict[str, int]]] = []
    real = module.load_tokenizer  # type: ignore[attr-defined]

    def noting(path: Path, *rest: Any, **options: Any) -> Any:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        seen.append((path, {str(file.relative_to(path)): file.lstat().st_mode for file in path.rglob("*")}))
        return real(path, *rest, **options)

    monkeypatch.setattr(module, "load_tokenizer", noting)
    module.Tokenizers(Templates(time.monotonic)).get(Resolver([]).resolve(Wanted(str(model))))

    ((path, files),) = seen
    assert not path.is_relative_to(model)
    assert not path.exists()
    assert {"config.json", "tokenizer.json", "vocab.txt", "additional_chat_templates/tools.jinja"} <= files.keys()
    assert not {name for name in files if name.endswith((".py", ".safetensors", ".md"))}
    assert not any(stat.S_ISLNK(mode) or stat.S_ISFIFO(mode) for mode in files.values())


@pytest.mark.parametrize("name", [*FILES, *ADAPTER_FILES])
def test_symlink_out_of_model_roots_is_refused(folder: Path, name: str) -> None:
    """A link within the roots is not refused."""
    roots, outside = folder / "roots", folder / "outside"
    for place in (roots, outside):
        place.mkdir()
    model, adapter = copy_of_embedded(roots), write_adapter(roots / "adapter")
    file = (adapter if name in ADAPTER_FILES else model) / name
    file.parent.mkdir(exist_ok=True)
    content = file.read_bytes() if file.exists() else b"{}"
    file.unlink(missing_ok=True)
    (outside / "secret").write_bytes(content)
    file.symlink_to(outside / "secret")
    resolver = Resolver([roots])

    def use() -> None:
        source = resolver.resolve(Wanted(str(model), adapter=str(adapter)))
        with private_copy(source.path, source.roots):
            pass

    with pytest.raises(SidecarError, match="model_roots") as caught:
        use()
    assert (caught.value.reason, name in caught.value.message) == (Reason.MODEL_NOT_FOUND, True)
    if content != b"{}":
        (outside / "secret").rename(roots / "shared")
        file.unlink()
        file.symlink_to(roots / "shared")
        use()


def test_template_folder_out_of_roots_is_refused(folder: Path) -> None:
    roots, outside = folder / "roots", folder / "outside"
    for place in (roots, outside):
        place.mkdir()
    model = copy_of_embedded(roots)
    (outside / "tools.jinja").write_text("secret")
    (model / "additional_chat_templates").symlink_to(outside)
    source = Resolver([roots]).resolve(Wanted(str(model)))

    with pytest.raises(SidecarError, match="model_roots"), private_copy(source.path, source.roots):
        raise AssertionError("it was copied")


def test_hub_snapshot_may_link_only_into_its_blobs(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = write_model(repo / "snapshots" / "main")
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(repo / "blobs" / str(number))
        file.symlink_to(f"../../blobs/{number}")
    roots = (tmp_path / "elsewhere",)

    assert identify("org/name", snapshot, hub=True, roots=roots).path == snapshot
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with (
        pytest.raises(SidecarError, match="model_roots"),
        private_copy(snapshot, allowed(roots, snapshot)),
    ):
        raise AssertionError("it was copied")


@pytest.mark.parametrize("name", ["refs/main", "trees/x.json"])
def test_fifo_in_the_hub_cache_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """huggingface_hub opens these files itself."""
    from huggingface_hub import constants

    from daemon.cache.hub import snapshot

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "models--org--name" / name
    file.parent.mkdir(parents=True)
    os.mkfifo(file)

    with pytest.raises(SidecarError, match="is a FIFO"):
        snapshot("org/name", "", allow_download=False, report=lambda *_: None)
