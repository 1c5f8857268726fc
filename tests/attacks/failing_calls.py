"""Makes calls of the system fail at each place of the engine, for the files of a model."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from daemon.cache.mlx.assembly import assembling
from daemon.engine.prompt import tokenizers

Failing = Callable[[Path, int], Any]
"""Makes a call of the system fail in a block, for the files of a model, with an error number."""


class _Unreadable(io.FileIO):
    """A file that can be opened but not read."""

    number = errno.EIO

    def readinto(self, buffer: Any, /) -> int:
        """Fail."""
        raise OSError(self.number, os.strerror(self.number))

    def read(self, size: int | None = -1, /) -> bytes:
        """Fail."""
        raise OSError(self.number, os.strerror(self.number))

    def readall(self) -> bytes:
        """Fail."""
        raise OSError(self.number, os.strerror(self.number))


def os_error(number: int) -> OSError:
    """Return the error that the system raises with this number."""
    return OSError(number, os.strerror(number))


def _below(model: Path, file: Any) -> bool:
    return not isinstance(file, int) and os.fspath(file).startswith(str(model)) and os.fspath(file) != str(model)


@contextmanager
def looking(model: Path, number: int) -> Iterator[None]:
    """Let `stat` of a model's files fail."""
    plain = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if _below(model, path):
            raise os_error(number)
        return plain(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        yield


@contextmanager
def opening(model: Path, number: int) -> Iterator[None]:
    """Let opening of a model's files fail: in Python, and in MLX as far as a test can do that."""
    plain, plain_os, load = io.open, os.open, mx.load

    def opened(file: Any, *arguments: Any, **options: Any) -> Any:
        if _below(model, file):
            raise os_error(number)
        return plain(file, *arguments, **options)

    def os_opened(path: Any, *arguments: Any, **options: Any) -> int:
        if _below(model, path):
            raise os_error(number)
        return plain_os(path, *arguments, **options)

    def loaded(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str) and _below(model, file):
            raise RuntimeError(f"[load_safetensors] Failed to open file {file}")
        return load(file, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        patch.setattr(os, "open", os_opened)
        patch.setattr(mx, "load", loaded)
        yield


@contextmanager
def opening_late(model: Path, number: int) -> Iterator[None]:
    """Let the model's key be computed, and opening of its files fail once its load has begun."""
    plain = assembling
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def begun(*arguments: Any, **options: Any) -> Any:
            stack.enter_context(opening(model, number))
            return plain(*arguments, **options)

        patch.setattr("daemon.cache.mlx.loader.assembling", begun)
        yield


@contextmanager
def reading(model: Path, number: int) -> Iterator[None]:
    """Let a model's files be opened but not read."""
    plain = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        real = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) and Path("/proc").exists() else file
        if "b" not in mode or not _below(model, real):
            return plain(file, mode, *arguments, **options)
        raw = type("Unreadable", (_Unreadable,), {"number": number})(file)
        return raw if options.get("buffering") == 0 or 0 in arguments[:1] else io.BufferedReader(raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield


@contextmanager
def evaluating(_model: Path, number: int) -> Iterator[None]:
    """Let MLX fail while it reads or computes, with the system's error or with a message of its own."""
    words = {errno.ENOMEM: "[malloc] Unable to allocate 4096 bytes.", errno.EIO: "[read] Unable to read 4096 bytes"}

    def fail(*_: Any) -> None:
        raise RuntimeError(words[number]) if number in words else os_error(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "eval", fail)
        yield


@contextmanager
def tokenizer(_model: Path, number: int) -> Iterator[None]:
    """Let the tokenizers library, which is written in Rust, fail."""

    def fail(*_: Any, **__: Any) -> None:
        raise Exception(f"{os.strerror(number)} (os error {number})")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "load_tokenizer", fail)
        yield


@contextmanager
def worker(_model: Path, number: int) -> Iterator[None]:
    """Let the start of the process that renders chat templates fail."""

    def fail(*_: Any, **__: Any) -> None:
        raise os_error(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        yield


LOADS: dict[str, Failing] = {
    "look": looking, "open": opening, "open late": opening_late, "read": reading, "evaluate": evaluating,
}  # fmt: skip
PROMPTS: dict[str, Failing] = {"tokenizer": tokenizer, "template worker": worker}
