"""Builders for tests: a manual clock, a model cache with fake loads, and model directories on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Hashable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from daemon.cache.limits import ModelLimits
from daemon.cache.load import Loaded, Progress, Stage, Ticket
from daemon.cache.model_cache import ModelCache
from daemon.shared.errors import Reason, SidecarError


class Clock:
    """A clock that advances only when a test calls `pass_`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


class Weights:
    """The result of a fake load. Unlike an int, it supports weak references."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True)
class FakeSource:
    """
    A model that needs no disk.

    Attributes:
        actual_bytes: Bytes that it really takes; None for what was expected.
        slices: Slices of its load.
        fails_in: Slice in which its load fails, if any.
        needs: Bytes that its load says it needs, before its first slice; None if it does not say.
    """

    name: str
    size_bytes: int = 100
    actual_bytes: int | None = None
    slices: int = 2
    fails_in: int | None = None
    needs: int | None = None

    @property
    def key(self) -> Hashable:
        """Identity of the content."""
        return f"key of {self.name}"


class FakeLoader:
    """
    Loads fake models in slices, and keeps a diary.

    Attributes:
        begun: Names of models with a started load, and whether it skips the warm-up.
        granted: Names of models with a load that continued after it had reported its need.
        abandoned: Names of models with a load that was closed before its end.
    """

    def __init__(self) -> None:
        self.granted: list[str] = []
        self.begun: list[tuple[str, bool]] = []
        self.abandoned: list[str] = []

    def __call__(self, source: FakeSource, skip_warmup: bool) -> Generator[Progress, None, Loaded[Weights]]:
        self.begun.append((source.name, skip_warmup))
        return self._slices(source)

    def _slices(self, source: FakeSource) -> Generator[Progress, None, Loaded[Weights]]:
        weights = Weights(source.name)
        try:
            if source.needs is not None:
                yield Progress(Stage.LOADING, 0, source.size_bytes, needs=source.needs)
                self.granted.append(source.name)
            for number in range(source.slices):
                if number == source.fails_in:
                    raise SidecarError(Reason.MODEL_CORRUPT, f"{weights.name} is broken")
                yield Progress(Stage.LOADING, (number + 1) * source.size_bytes // source.slices, source.size_bytes)
        except GeneratorExit:
            self.abandoned.append(source.name)
            raise
        return Loaded(weights, source.size_bytes if source.actual_bytes is None else source.actual_bytes)


class FakeModels:
    """
    A model cache on fake loads.

    Attributes:
        frees: How often memory was given back.
    """

    def __init__(self, budget: int = 1000, **limits: Any) -> None:
        self.clock = Clock()
        self.loader = FakeLoader()
        self.frees = 0
        self.cache: ModelCache[FakeSource, Weights] = ModelCache(
            ModelLimits(budget, **limits), self.loader, self.clock, self._free
        )

    def ask(self, name: str, size: int = 100, **options: Any) -> Ticket[Weights]:
        """Request a model. The clock advances, so that no two uses have the same time."""
        self.clock.pass_(1)
        return self.cache.get_or_load(FakeSource(name, size), **options)

    def load(self, name: str, size: int = 100, **options: Any) -> Ticket[Weights]:
        """Request a model and wait for it; the caller holds the lease."""
        ticket = self.ask(name, size, **options)
        self.finish()
        return ticket

    def use(self, name: str, size: int = 100, **options: Any) -> Ticket[Weights]:
        """Request a model, wait for it and release it; the ticket has the outcome."""
        ticket = self.load(name, size, **options)
        assert ticket.error is None
        ticket.cancel()
        return ticket

    def finish(self) -> None:
        """Run all loads to their end."""
        while self.cache.busy:
            self.cache.step()
            self.cache.check_integrity()

    @property
    def names(self) -> list[str]:
        """Names of the models in memory, most recently used first."""
        return [entry.name for entry in self.cache.entries()]

    def _free(self) -> None:
        self.frees += 1


def safetensors(header: object, data: bytes = b"") -> bytes:
    """Return the bytes of a safetensors file; a header given as bytes is used unchanged."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def float_tensors(**shapes: tuple[int, ...]) -> bytes:
    """Return the bytes of a safetensors file with tensors of float32 zeros."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return safetensors(header, bytes(end))


def write_model(path: Path, **config: Any) -> Path:
    """Write a directory that passes the checks of a model but cannot be loaded, and return it."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (path / "model.safetensors").write_bytes(float_tensors(weight=(4, 4)))
    return path


def write_adapter(path: Path) -> Path:
    """Write a directory that passes the checks of an adapter, and return it."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text('{"num_layers": 1}')
    (path / "adapters.safetensors").write_bytes(float_tensors(lora=(2, 2)))
    return path


def tiny_llama(path: Path, layers: int = 3, **config: Any) -> Path:
    """Write a model that mlx-lm loads and runs, with the same weights in every run, and return its directory."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    settings = {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    mx.random.seed(1)
    model = llama.Model(llama.ModelArgs.from_dict(settings))
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (path / "config.json").write_text(json.dumps({**settings, **config}))
    return path


def page_rounding(buffers: int) -> int:
    """Return the bytes that the allocator may add to `buffers` buffers: Metal rounds large buffers up to pages."""
    import mlx.core as mx

    return buffers * 16_384 if mx.metal.is_available() else 0
