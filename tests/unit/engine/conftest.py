"""Fixtures of the engine's tests: engines in this process that end with their test, and the model to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.resolver import EMBEDDED_PATH, Resolver, Wanted
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.kv.disk import restores
from tests.unit.engine.harness import Harness, Reference
from tests.unit.engine.two_ranks import Pair, connected


@pytest.fixture(name="engine")
def _engine(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Return a function that makes an engine with the configuration keys given and a state directory of the test's."""
    made: list[Harness] = []

    def make(**settings: Any) -> Harness:
        made.append(Harness(**{"state_dir": tmp_path / "state", **settings}))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests wait for the disk however busy this machine is; tests/unit/kv/disk has the limit."""
    monkeypatch.setattr(restores, "STALL_SECONDS", 600.0)


@pytest.fixture(name="harness")
def _harness(engine: Callable[..., Harness]) -> Harness:
    """Return an engine with the usual configuration, but for the warm-up."""
    return engine()


@pytest.fixture(name="reference", scope="session")
def _reference() -> Reference:
    """Return the model as plain mlx-lm runs it."""
    return Reference(EMBEDDED_PATH)


@pytest.fixture(name="templates", scope="session")
def _templates() -> Iterator[Templates]:
    """Return what renders chat templates."""
    templates = Templates(time.monotonic)
    yield templates
    templates.close()


@pytest.fixture(name="tokenizer", scope="session")
def _tokenizer(templates: Templates) -> Tokenizer:
    """Return the model's tokenizer as the engine uses it."""
    return Tokenizers(templates).get(Resolver([]).resolve(Wanted("embedded")))


@pytest.fixture(name="pair")
def _pair() -> Iterator[Pair]:
    with connected() as pair:
        yield pair
