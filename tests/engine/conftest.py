"""Fixtures of the engine's tests: engines in this process that end with their test, and a frozen copy of the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cache import resolver
from daemon.cache.resolver import EMBEDDED_PATH, Resolver
from daemon.engine.tokenizers import Tokenizer, Tokenizers
from tests.engine.harness import Harness, Reference


@pytest.fixture(name="frozen", scope="session", autouse=True)
def _frozen_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let "embedded" stand for a copy: the files of the original may be replaced while tests compare answers."""
    copy = tmp_path_factory.mktemp("embedded") / "model"
    shutil.copytree(EMBEDDED_PATH, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolver, "EMBEDDED_PATH", copy)
        yield copy


@pytest.fixture(name="engine")
def _engine() -> Iterator[Callable[..., Harness]]:
    """Return a function that makes an engine with the configuration keys given."""
    made: list[Harness] = []

    def make(**settings: Any) -> Harness:
        made.append(Harness(**settings))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture(name="harness")
def _harness(engine: Callable[..., Harness]) -> Harness:
    """Return an engine with the usual configuration, but for the warm-up."""
    return engine()


@pytest.fixture(name="reference", scope="session")
def _reference(frozen: Path) -> Reference:
    """Return the model as plain mlx-lm runs it."""
    return Reference(frozen)


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer(frozen: Path) -> Tokenizer:
    """Return the model's tokenizer as the engine uses it."""
    return Tokenizers().get(Resolver([]).resolve("embedded"))
