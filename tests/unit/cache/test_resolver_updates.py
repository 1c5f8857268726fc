"""Updates of models of the Hub: asked for in turn, refused before a branch moves, and alive for those that wait."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.cache import keyed_lock
from daemon.cache.digests import TakesLong
from daemon.cache.resolver import Resolver, Wanted
from daemon.shared import liveness
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import write_model
from tests.unit.cache.fake_hub import FakeHub, Watching


def test_update_asks_the_hub_for_a_model_that_is_here(resolver: Resolver, hub: FakeHub) -> None:
    watcher, wanted = Watching(), Wanted("org/name", "main", allow_download=True, update=True)
    with pytest.raises(TakesLong):
        resolver.resolve(wanted)
    assert not hub.asked
    assert resolver.resolve(wanted, watcher).name == "org/name"
    assert (hub.asked, watcher.downloads) == ([("org/name", "main", True)], [(1, 2)])


def test_update_that_cannot_fit_is_not_downloaded(hub: FakeHub) -> None:
    def afford(name: str, nbytes: int) -> None:
        raise SidecarError(Reason.MODEL_EXCEEDS_BUDGET, f"{name} has {nbytes} bytes")

    watcher, resolver = Watching(), Resolver([], hub, hub.plan, update=hub.update, afford=afford)
    with pytest.raises(SidecarError, match="org/name has 100 bytes"):
        resolver.resolve(Wanted("org/name", allow_download=True, update=True), watcher)
    assert not watcher.downloads


def test_update_that_mlx_lm_does_not_know_is_refused_before_the_branch_moves(hub: FakeHub) -> None:
    moved = []

    def update(*arguments: Any, **options: Any) -> Path:
        path = hub.update(*arguments, **options)
        moved.append(path)
        return path

    resolver = Resolver([], hub, hub.plan, update=update, supported=lambda _: False)
    with pytest.raises(SidecarError, match="is not supported by this mlx-lm"):
        resolver.resolve(Wanted("org/name", allow_download=True, update=True), Watching())
    assert not moved


@pytest.mark.parametrize(("wanted", "branch"), [("v2", "v2"), ("", ""), (None, "")])
def test_hub_model_knows_the_branch_that_it_was_asked_for_by(
    resolver: Resolver, wanted: str | None, branch: str
) -> None:
    assert resolver.resolve(Wanted("org/name", wanted)).branch == branch


@pytest.mark.parametrize("name", ["embedded", "directory"])
def test_update_asks_the_hub_for_its_own_models_alone(
    resolver: Resolver, hub: FakeHub, tmp_path: Path, name: str
) -> None:
    wanted = name if name == "embedded" else str(write_model(tmp_path / "model"))
    assert resolver.resolve(Wanted(wanted, allow_download=True, update=True)).name == wanted
    assert not hub.asked


def test_call_that_waits_for_a_download_lives_as_long_as_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's library reports from threads of its own."""
    monkeypatch.setattr(keyed_lock, "_LOOK_SECONDS", 0.01)
    path, begun, alive = write_model(tmp_path / "model"), threading.Event(), threading.Event()

    def fetch(_repo: str, _revision: str, *, allow_download: bool, report: Any) -> Path:
        if not allow_download:
            raise SidecarError(Reason.MODEL_NOT_CACHED, "it is not here")
        begun.set()
        for _ in range(2000):
            reporting = threading.Thread(target=report, args=(1, 2))
            reporting.start()
            reporting.join()
            if alive.wait(0.01):
                break
        return path

    resolver, wanted = Resolver([], fetch, lambda *_: 1), Wanted("org/name", allow_download=True)

    def waits() -> None:
        with liveness.watched(alive.set):
            resolver.resolve(wanted, Watching())

    first = threading.Thread(target=resolver.resolve, args=(wanted, Watching()))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=waits)
    second.start()
    first.join(60)
    assert alive.is_set()
    second.join(60)
