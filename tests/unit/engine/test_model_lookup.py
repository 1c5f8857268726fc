"""Finding models: one search for all who ask for the same, all see how far it is, and the last to go abandons it."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.cache import digests
from daemon.cache.callbacks import ignore
from daemon.cache.resolver import EMBEDDED_PATH, Resolver
from daemon.engine.calls.model_lookup import _Search, _Waiter
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness, generate

DOWNLOAD = pb.GetOrLoadRequest(model="org/name", allow_download=True)


class SlowHub:
    """
    A Hub whose only model arrives when a test lets it.

    Attributes:
        here: Whether it is in the local cache.
        downloads: Downloads so far.
        abandoned: Whether one ended early.
    """

    def __init__(self) -> None:
        self.here = False
        self.downloads = 0
        self.abandoned = threading.Event()
        self.go_on = threading.Semaphore(0)

    def update(self, repo: str, revision: str, *, report: Callable[[int, int], None], **_: Any) -> Path:
        """Fetch it anew."""
        self.here = False
        return self.fetch(repo, revision, allow_download=True, report=report)

    def fetch(self, repo: str, _revision: str, *, allow_download: bool, report: Callable[[int, int], None]) -> Path:
        """Find it, or wait twice for half of it."""
        if self.here:
            return EMBEDDED_PATH
        if not allow_download:
            raise SidecarError(Reason.MODEL_NOT_CACHED, f"{repo} is not here")
        self.downloads += 1
        for part in (1, 2):
            try:
                report(50 * part, 100)
            except SidecarError:
                self.abandoned.set()
                raise
            assert self.go_on.acquire(timeout=60)
        self.here = True
        return EMBEDDED_PATH


@pytest.fixture(name="hub")
def _hub(harness: Harness) -> SlowHub:
    """Return the Hub that the engine asks."""
    hub = SlowHub()
    harness.engine._services.lookup._resolver = Resolver([], hub.fetch, lambda *_: 100, update=hub.update)
    return hub


def _downloading(harness: Harness, call: int) -> list[int]:
    events = [event.load.progress for event in harness.of(call)]
    return [one.bytes_done for one in events if one.stage == pb.LOAD_STAGE_DOWNLOADING]


def test_model_lookup_callers_share_one_download(harness: Harness, hub: SlowHub) -> None:
    """More callers than there are threads: one download, one load, all get ready, and others are not held up."""
    calls = [harness.begin(DOWNLOAD) for _ in range(32)]
    harness.until(lambda: all(_downloading(harness, call) == [50] for call in calls))
    late = harness.begin(DOWNLOAD)
    harness.until(lambda: _downloading(harness, late) == [50])
    assert harness.run(generate("The")).finished.usage.completion_tokens > 0
    hub.go_on.release(2)
    for call in [*calls, late]:
        assert harness.finish(call)[-1].load.ready.model == "org/name"
        assert _downloading(harness, call) == [50, 100]
    assert hub.downloads == 1
    harness.settle()


def test_download_ends_with_its_last_caller(harness: Harness, hub: SlowHub) -> None:
    """One of two may go."""
    first, second = harness.begin(DOWNLOAD), harness.begin(DOWNLOAD)
    harness.until(lambda: bool(_downloading(harness, first) and _downloading(harness, second)))
    harness.cancel(first)
    harness.cancel(second)
    hub.go_on.release()
    assert hub.abandoned.wait(60)
    hub.go_on.release(2)
    assert harness.run(DOWNLOAD).info.outcome == pb.LOAD_OUTCOME_LOADED
    assert hub.downloads == 2
    harness.settle()


def test_download_continues_for_the_remaining_caller(harness: Harness, hub: SlowHub) -> None:
    """And tells only that one."""
    first, second = harness.begin(DOWNLOAD), harness.begin(DOWNLOAD)
    harness.until(lambda: bool(_downloading(harness, first) and _downloading(harness, second)))
    harness.cancel(first)
    hub.go_on.release(2)
    harness.finish(second)
    assert (_downloading(harness, first), hub.downloads) == ([50], 1)
    harness.settle()


def test_model_lookup_error_is_shared_and_forgotten(harness: Harness, hub: SlowHub) -> None:
    """The next call tries again."""
    real = harness.engine._services.lookup._resolver._plan
    harness.engine._services.lookup._resolver._plan = _gated
    for call in [harness.begin(DOWNLOAD) for _ in range(3)]:
        assert harness.finish(call)[-1].failure.reason == "MODEL_GATED"
    harness.engine._services.lookup._resolver._plan = real
    hub.go_on.release(2)
    assert harness.run(DOWNLOAD).info.outcome == pb.LOAD_OUTCOME_LOADED


def _gated(*_: str) -> int:
    raise SidecarError(Reason.MODEL_GATED, "accept the terms first")


def test_estimate_of_uncached_model_downloads_nothing(harness: Harness, hub: SlowHub) -> None:
    """The Hub tells the size, and that is all that is known."""
    info = harness.run(pb.GetOrLoadRequest(model="org/name", estimate_only=True)).info
    assert info == pb.ModelInfo(model="org/name", size_bytes=100, outcome=pb.LOAD_OUTCOME_ESTIMATED)
    assert hub.downloads == 0
    assert harness.models == 0


def test_estimate_with_download_loads_nothing(harness: Harness, hub: SlowHub) -> None:
    """This is what `pull` asks for."""
    hub.go_on.release(2)
    call = harness.begin(pb.GetOrLoadRequest(model="org/name", estimate_only=True, allow_download=True))
    info = harness.finish(call)[-1].load.ready
    assert (info.outcome, info.architecture) == (pb.LOAD_OUTCOME_ESTIMATED, "llama")
    assert _downloading(harness, call) == [50, 100]
    assert hub.here
    assert harness.models == 0
    assert harness.figures.model_cache.total_misses == 0


UPDATE = pb.GetOrLoadRequest(model="org/name", allow_download=True, update=True)


def test_updates_of_one_model_are_one(harness: Harness, hub: SlowHub) -> None:
    """Its callers see how far it is."""
    calls = [harness.begin(UPDATE) for _ in range(3)]
    harness.until(lambda: all(_downloading(harness, call) == [50] for call in calls))
    hub.go_on.release(2)
    for call in calls:
        info = harness.finish(call)[-1].load.ready
        assert (info.model, list(info.warnings), _downloading(harness, call)) == ("org/name", [], [50, 100])
    assert hub.downloads == 1
    harness.settle()


def test_update_that_no_call_waits_for_is_abandoned(harness: Harness, hub: SlowHub) -> None:
    call = harness.begin(UPDATE)
    harness.until(lambda: bool(_downloading(harness, call)))
    harness.cancel(call)
    hub.go_on.release()
    assert hub.abandoned.wait(60)
    harness.settle()


def _refused_update(harness: Harness, monkeypatch: pytest.MonkeyPatch, reason: Reason) -> Answer:
    """Return the answer to a call whose update is refused."""

    def update(*_: Any, **__: Any) -> Path:
        raise SidecarError(reason, "it cannot be had")

    monkeypatch.setattr(harness.engine._services.lookup._resolver, "_update", update)
    return harness.run(UPDATE)


@pytest.mark.parametrize("reason", [Reason.MODEL_NOT_FOUND, Reason.MODEL_GATED, Reason.MODEL_NOT_RESPONDING])
def test_update_that_the_hub_refuses_leaves_the_model_as_it_is(
    harness: Harness, hub: SlowHub, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    """The warning says that it was not updated, and why; no other names are suggested."""
    hub.here = True
    info = _refused_update(harness, monkeypatch, reason).info
    assert list(info.warnings) == ["org/name was not updated: it cannot be had"]
    assert info.outcome == pb.LOAD_OUTCOME_LOADED


@pytest.mark.parametrize("reason", [Reason.MODEL_EXCEEDS_BUDGET, Reason.MODEL_UNSUPPORTED])
def test_new_commit_that_cannot_be_used_is_an_error(
    harness: Harness, hub: SlowHub, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    """And the model can be used as before."""
    hub.here = True
    assert _refused_update(harness, monkeypatch, reason).failure.reason == reason.value
    assert harness.run(pb.GetOrLoadRequest(model="org/name")).info.outcome == pb.LOAD_OUTCOME_LOADED


def test_model_is_found_while_it_is_updated(harness: Harness, hub: SlowHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if that takes a thread for long work, as for weights that were not read before."""
    updating = harness.begin(UPDATE)
    harness.until(lambda: bool(_downloading(harness, updating)))
    hub.here = True
    monkeypatch.setattr(digests, "QUICK_BYTES", 1000)
    monkeypatch.setattr(harness.engine._services.lookup._resolver, "_digests", digests.Digests())
    assert harness.run(pb.GetOrLoadRequest(model="org/name")).info.outcome == pb.LOAD_OUTCOME_LOADED
    hub.go_on.release(2)
    harness.finish(updating)
    harness.settle()


def _large_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a model that was not seen before and whose weights count as large."""
    monkeypatch.setattr(digests, "QUICK_BYTES", 1000)
    path = Path(shutil.copytree(EMBEDDED_PATH, folder / uuid.uuid4().hex))
    (path / "config.json").write_text((path / "config.json").read_text().replace("{", '{"copy": 1, ', 1))
    return str(path)


def test_unknown_weights_are_digested_once_for_all(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile both threads that prepare requests are free."""
    path = _large_copy(tmp_path, monkeypatch)
    go_on, reads = threading.Event(), []
    real = digests._sha256

    def slow(*arguments: Any) -> str:
        if arguments[0].is_relative_to(path):
            reads.append(arguments)
            assert go_on.wait(60)
        return real(*arguments)

    monkeypatch.setattr(digests, "_sha256", slow)
    calls = [harness.begin(pb.GetOrLoadRequest(model=path)) for _ in range(8)]
    other = harness.begin(generate("The", model=path))
    assert harness.run(generate("The")).finished.usage.completion_tokens > 0
    go_on.set()
    for call in calls:
        events = [event.load.progress for event in harness.finish(call)]
        size = (Path(path) / "model.safetensors").stat().st_size
        assert pb.LoadProgress(stage=pb.LOAD_STAGE_QUEUED, bytes_done=size, bytes_total=size) in events
    harness.finish(other)
    assert len(reads) <= 2  # one for GetOrLoad, one for Generate, whose search is another
    harness.settle()


@pytest.mark.parametrize("alone", [True, False])
def test_batching_window_waits_for_no_model_being_read(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Unless the engine is a rank of a group: the first of them alone hears that, and all begin the same passes."""
    path, reading, go_on = _large_copy(tmp_path, monkeypatch), threading.Event(), threading.Event()

    def slow(file: Path, size: int, report: Callable[[int, int], None] | None, rest: Callable[[float], None]) -> str:
        if report is not None:
            report(0, size)
        reading.set()
        assert go_on.wait(60)
        return real(file, size, report, rest)

    real = digests._sha256
    monkeypatch.setattr(digests, "_sha256", slow)
    harness.engine._services = replace(harness.engine._services, alone=alone)
    call = harness.begin(generate("The", model=path))
    harness.until(reading.is_set)
    harness.step()
    assert (call in harness.engine._services.coming) is not alone
    go_on.set()
    harness.finish(call)
    harness.settle()


def test_search_that_no_call_waits_for_is_not_joined() -> None:
    """Whether its thread has noticed or not: on ranks of a group, some have and others have not."""
    first, second, late = (_Waiter(ignore) for _ in range(3))
    search = _Search(first, ignore)
    assert search.join(second)
    first.abandoned = second.abandoned = True
    assert not search.join(late)
    with pytest.raises(SidecarError):
        search.reading(1, 2)
