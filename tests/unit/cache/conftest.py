"""Fixtures of the tests of a resolver: a Hub with one model, and a resolver that asks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cache.resolver import Resolver
from tests.support.builders import write_model
from tests.unit.cache.fake_hub import FakeHub


@pytest.fixture(name="hub")
def _hub(tmp_path: Path) -> FakeHub:
    write_model(tmp_path / "hub" / "org--name")
    return FakeHub(tmp_path / "hub")


@pytest.fixture(name="resolver")
def _resolver(hub: FakeHub) -> Resolver:
    return Resolver([], hub, hub.plan, update=hub.update)
