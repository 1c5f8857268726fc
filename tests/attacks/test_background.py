"""Disks that hang: a read on one blocks a thread for good, and prompts of other models do not wait for it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mlx_sidecar
from daemon.cache import digests, keyed_lock
from daemon.cache.callbacks import Rest
from daemon.cache.digests import Digests
from daemon.cache.identity import ModelSource
from daemon.cache.resolver import EMBEDDED_PATH, Resolver, Wanted
from daemon.engine.background.background import LATE_SECONDS, TICK_SECONDS
from daemon.engine.background.task import LOOKUP, READ, TOKENIZER, Kind
from daemon.engine.prompt import tokenizers
from daemon.server.supervision import supervisor as supervisor_module
from daemon.server.supervision.supervisor import State
from daemon.shared.errors import Reason
from daemon.shared.failpoints import ENV
from daemon.shared.last_events import ends_call
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import RunningDaemon, alive, wait_until
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate
from tests.unit.server.supervised import error_of, events, opened, supervising, text, until_delta

TOKENS = pb.TokenIds(ids=[40, 41, 42])


class Disk:
    """A disk on which every read of a file hangs in the system, until it is back."""

    def __init__(self, folder: Path) -> None:
        self._fifo = folder / "disk"
        os.mkfifo(self._fifo)
        self.readers = 0
        self.hangs = True

    def read(self) -> None:
        """Hang."""
        self.readers += 1
        with self._fifo.open("rb"):
            pass

    def come_back(self) -> None:
        """Let all that hang go on, and all that comes."""
        self.hangs = False
        self._writer = os.open(self._fifo, os.O_RDWR)

    def close(self) -> None:
        """Let go of it."""
        if self.hangs:
            self.come_back()
        os.close(self._writer)


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Disk]:
    """Return a disk that hangs."""
    disk = Disk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture(name="harness")
def _harness(tmp_path: Path) -> Iterator[Harness]:
    """Return an engine of the test's own."""
    harness = Harness(state_dir=tmp_path / "state")
    yield harness
    harness.close()


def pass_(harness: Harness, seconds: float) -> None:
    """Let the engine look once a second, for so many seconds."""
    for _ in range(int(seconds)):
        harness.clock_offset += 1
        harness.step()


def waits(harness: Harness, call: int) -> bool:
    """Whether a call has no answer yet."""
    return not any(map(ends_call, harness.of(call)))


def refused(harness: Harness, call: int, kind: Kind, name: str) -> None:
    """Check that the error of a call names the work that hangs."""
    failure = Answer(harness.finish(call)).failure
    assert (failure.reason, failure.metadata["work"]) == ("MODEL_NOT_RESPONDING", kind.name)
    assert f"{kind.words} {name} has not moved on for {kind.limit:.0f} s" in failure.message
    assert failure.HasField("retry_after")


@pytest.fixture(name="hung")
def _hung(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return models with tokenizers that hang when they are read, more than there are places."""
    paths = [str(copy_of_embedded(tmp_path, f"hung-{number}")) for number in range(5)]
    real = tokenizers._load

    def load(source: ModelSource, *rest: Any) -> Any:
        if source.name in paths:
            disk.read()
        return real(source, *rest)

    monkeypatch.setattr(tokenizers, "_load", load)
    return paths


def test_hanging_tokenizer_delays_only_its_own_model(
    harness: Harness, hung: list[str], disk: Disk, tmp_path: Path
) -> None:
    """Five of them, with four calls each: others are answered, and one that was never seen is as well."""
    calls = {path: [harness.begin(generate("The", model=path)) for _ in range(4)] for path in hung}
    harness.until(lambda: disk.readers >= 2)
    pass_(harness, 3 * LATE_SECONDS)
    assert harness.run(generate("The")).finished.usage.completion_tokens > 0
    fresh = str(copy_of_embedded(tmp_path, "fresh"))
    assert harness.run(generate("The", model=fresh)).finished.usage.completion_tokens > 0
    assert all(waits(harness, call) for each in calls.values() for call in each)
    assert disk.readers == len(hung)

    pass_(harness, TOKENIZER.limit + 5)
    for path, each in calls.items():
        for call in each:
            refused(harness, call, TOKENIZER, path)
    harness.step()
    pass_(harness, 2)
    assert {(one.work, one.model) for one in harness.figures.engine.stuck} == {("tokenizer", path) for path in hung}
    for path in hung:  # at once, and without another thread
        refused(harness, harness.begin(generate("The", model=path)), TOKENIZER, path)
    assert disk.readers == len(hung)
    assert harness.run(generate("once upon")).finished.usage.completion_tokens > 0

    disk.come_back()
    harness.until(lambda: harness.engine.stuck == 0)
    cold = harness.run(generate("The", model=hung[0], cache=pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)))
    assert cold.content == harness.run(generate("The")).content
    harness.settle()


def test_model_copy_on_another_disk_is_not_delayed(
    harness: Harness, hung: list[str], disk: Disk, tmp_path: Path
) -> None:
    """Though it is the same model by its content."""
    same = Path(shutil.copytree(hung[0], tmp_path / "same"))
    call = harness.begin(generate("The", model=hung[0]))
    harness.until(lambda: disk.readers == 1)
    assert harness.run(generate("The", model=str(same))).finished.usage.completion_tokens > 0
    assert waits(harness, call)
    disk.come_back()
    harness.finish(call)


def test_hanging_lookup_delays_only_its_own_model(harness: Harness, disk: Disk) -> None:
    """For each kind of call; another spelling of the name is another lookup."""

    class Hanging(Resolver):
        def resolve(self, wanted: Wanted, *rest: Any) -> ModelSource:
            if wanted.name != "embedded":
                disk.read()
            return super().resolve(Wanted("embedded"), *rest)

    harness.engine._services.lookup._resolver = Hanging([])
    names = [f"/Volumes/nas/{letter}" for letter in "abcd"]
    calls = [harness.begin(generate("The", model=name)) for name in names]
    loads = [harness.begin(pb.GetOrLoadRequest(model=name)) for name in names]
    prefixes = [
        harness.begin(pb.InvalidateRequest(prefix=pb.PrefixTarget(model=name, tokens=TOKENS))) for name in names
    ]
    pass_(harness, 3 * LATE_SECONDS)
    assert harness.run(generate("The")).finished.usage.completion_tokens > 0
    assert harness.run(pb.GetOrLoadRequest(model="embedded")).info.model == "embedded"
    assert disk.readers == len(names)
    pass_(harness, LOOKUP.limit + 5)
    for each in (calls, loads, prefixes):
        for call, name in zip(each, names, strict=True):
            refused(harness, call, LOOKUP, name)
    disk.come_back()
    harness.until(lambda: harness.engine.stuck == 0)
    assert harness.run(generate("The", model=names[0])).finished.usage.completion_tokens > 0
    harness.settle()


class SlowDisk:
    """Weights that come a piece at a time, when a test lets them."""

    def __init__(self) -> None:
        self.pieces = 0
        self.go_on = threading.Semaphore(0)

    def aside(self) -> AbstractContextManager[Rest]:
        """Return the function that runs between two pieces: it waits."""

        def rest(_: float) -> None:
            self.pieces += 1
            assert self.go_on.acquire(timeout=60)

        return nullcontext(rest)


@pytest.fixture(name="slow")
def _slow(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    """Return the disk that weights of the engine's models lie on: they have more than five pieces."""
    slow = SlowDisk()
    monkeypatch.setattr(digests, "QUICK_BYTES", 1000)
    monkeypatch.setattr(digests, "_PIECE", (EMBEDDED_PATH / "model.safetensors").stat().st_size // 5)
    monkeypatch.setattr(keyed_lock, "_LOOK_SECONDS", 0.01)
    known = Digests(aside=slow.aside)
    slow.go_on.release(100)
    resolver = Resolver([], digests=known)
    resolver.resolve(Wanted("embedded"), _Watcher())
    while slow.go_on.acquire(blocking=False):
        pass
    slow.pieces = 0
    harness.engine._services.lookup._resolver = resolver
    return slow


def _is_at(slow: SlowDisk, piece: int) -> bool:
    return slow.pieces == piece


class _Watcher:
    def downloading(self, done: int, total: int) -> None:
        """Nothing is."""

    def reading(self, done: int, total: int) -> None:
        """Weights are."""


def test_weight_read_lasts_while_bytes_still_arrive(harness: Harness, slow: SlowDisk, tmp_path: Path) -> None:
    """Each piece takes almost the longest time; when no piece comes, all waiting calls get the error, by any name."""
    path = copy_of_embedded(tmp_path, "large")
    link = tmp_path / "link"
    link.symlink_to(path)
    calls = {name: harness.begin(generate("The", model=str(name))) for name in (path, link)}
    for piece in range(1, 5):
        harness.until(partial(_is_at, slow, piece))
        pass_(harness, READ.limit - 10)
        assert all(waits(harness, call) for call in calls.values())
        assert harness.run(generate("The")).finished.usage.completion_tokens > 0
        slow.go_on.release()
    harness.until(lambda: slow.pieces == 5)
    pass_(harness, READ.limit + 5)
    for name, call in calls.items():
        refused(harness, call, READ, str(name))
    refused(harness, harness.begin(generate("The", model=str(path))), READ, str(path))
    slow.go_on.release(100)
    harness.until(lambda: harness.engine.stuck == 0)
    assert harness.run(generate("The", model=str(path))).finished.usage.completion_tokens > 0
    harness.settle()


def test_machine_sleep_abandons_no_background_work(harness: Harness, hung: list[str], disk: Disk) -> None:
    """The clock jumped for the reader and for its watchdog alike; a jump counts as one look."""
    call = harness.begin(generate("The", model=hung[0]))
    harness.until(lambda: disk.readers == 1)
    for _ in range(int(TOKENIZER.limit / TICK_SECONDS) - 2):
        harness.clock_offset += 100_000
        harness.step()
    assert waits(harness, call)
    assert harness.engine.stuck == 0
    disk.come_back()
    assert Answer(harness.finish(call)).finished.usage.completion_tokens > 0


def test_cancelled_calls_do_not_add_hanging_threads(harness: Harness, hung: list[str], disk: Disk) -> None:
    """Callers that give up and come again cost one thread, however often they do."""
    for _ in range(20):
        call = harness.begin(generate("The", model=hung[0]))
        harness.until(lambda: disk.readers == 1)
        harness.cancel(call)
    pass_(harness, TOKENIZER.limit + 5)
    assert disk.readers == 1
    assert harness.engine.stuck == 1
    disk.come_back()
    harness.until(lambda: harness.engine.stuck == 0)
    harness.settle()


async def test_engine_with_hanging_threads_is_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the engine's end frees them; calls that run meanwhile are not to blame, and are not quarantined."""
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(supervisor_module, "CHECK_SECONDS", 0.02)
    async with supervising() as supervisor:
        bystander = opened(supervisor, "hold")
        await until_delta(bystander)
        first = supervisor.pid
        supervisor.router.open(ipc.Command(generate=pb.GenerateRequest(model="stuck-threads")))
        assert (await error_of(bystander)).reason is Reason.ENGINE_RESTARTED
        await supervisor.until(State.READY, times=2)
        assert text(await events(opened(supervisor, "ok"))) == "one two three"
        assert supervisor.pid != first
        assert not supervisor.router.quarantine.knows


def test_daemon_with_hanging_thread_serves_and_exits(
    start_daemon: Callable[..., RunningDaemon], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine does not wait for it, neither when it is told to end nor when its parent is gone."""
    monkeypatch.setenv(ENV, "tokenizer.read=sleep:10000@1")
    path = str(copy_of_embedded(folder, "hung"))
    for end in ("drained", "killed"):
        daemon = start_daemon(drain_timeout="0.1")
        with daemon.client() as client:
            hung = threading.Thread(target=_ends_badly, args=(daemon, path))
            hung.start()
            wait_until(partial(_waits, client), "the call has arrived")
            assert client.complete("embedded", "The", max_tokens=4).usage.completion_tokens == 4
            engine = client.stats().engine
            assert (engine.state, engine.stuck) == ("ready", ())
        if end == "drained":
            assert daemon.stop() == 0
            assert "engine_shutdown_timeout" not in [line["event"] for line in daemon.log()]
        else:
            daemon.process.kill()
            daemon.wait()
        wait_until(partial(_gone, engine.pid), "engine_stopped")
        hung.join()


def _waits(client: mlx_sidecar.Client) -> bool:
    return client.stats().engine.queued == 1


def _gone(pid: int) -> bool:
    return not alive(pid)


def _ends_badly(daemon: RunningDaemon, model: str) -> None:
    with daemon.client() as client, pytest.raises(mlx_sidecar.SidecarError):
        client.complete(model, "The", timeout=60)
