"""Drives a chaos run: starts clients and injects faults, then runs the checker over the history."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from daemon.cache.identity import identify
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.tokenizers import Tokenizers
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.chaos.asks import Ask, pool, solo_texts
from tests.chaos.calls import CHANNEL
from tests.chaos.checker import settle, violations
from tests.chaos.clients import Client
from tests.chaos.history import OK, History
from tests.chaos.world import World
from tests.support.models import copy_of_embedded

CLIENTS = 6
SAMPLE_SECONDS = 0.1
PATIENCE_SECONDS = 20.0
ANSWERS = 4
"""So many streams end well before some of the faults."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found, and how much it did."""

    violations: list[str]
    ends: Counter[str]
    faults: Counter[str]
    reused: int
    from_disk: int
    invalidations: int
    samples: int

    def __str__(self) -> str:
        """Return the figures as text."""
        lines = [f"  {count:7} {what}" for what, count in self.ends.most_common()]
        counted = [f"{self.reused} streams reused a prefix, {self.from_disk} from the disk"]
        counted += [f"{self.invalidations} invalidations"]
        counted += [f"{self.samples} samples of budgets", f"faults: {dict(self.faults)}"]
        return "\n".join([f"{sum(self.ends.values())} streams:", *lines, *counted])


def run(seed: int, seconds: float, log: Path | None = None) -> Report:
    """Make a daemon's life hard for so long, and return what went wrong; its log is kept where `log` says."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    try:
        return _run(folder, random.Random(seed), seconds)
    finally:
        if log is not None:
            shutil.copy(folder / "daemon.log", log)
        shutil.rmtree(folder)


def _run(folder: Path, rng: random.Random, seconds: float) -> Report:
    history = History()
    world = World(folder, history, _split(rng))
    with closing(Templates(time.monotonic)) as templates:
        tokenizer = Tokenizers(templates).get(identify("embedded", EMBEDDED_PATH))
        asks = pool(rng, ["embedded", str(copy_of_embedded(folder))], tokenizer)
    over = threading.Event()
    world.start()
    try:
        with grpc.insecure_channel(f"unix:{world.socket}", options=CHANNEL) as channel:
            stub = SidecarServiceStub(channel)
            solo = solo_texts(stub, asks)
            clients = [Client(world, history, asks, _split(rng), over) for _ in range(CLIENTS)]
            with _running(
                history, over, [*(client.run for client in clients), lambda: _watch(world, stub, solo, over)]
            ):
                _disturb(world, stub, seconds, over, _split(rng))
            clients[0].read_until_one_is_whole(stub)
            world.finish(stub)
    finally:
        world.kill()
    return _report(history, violations(history, solo))


def _split(rng: random.Random) -> random.Random:
    """Return a generator of its own for a thread: what the others do then does not change what it does."""
    return random.Random(rng.getrandbits(64))


@contextmanager
def _running(history: History, over: threading.Event, work: list[Callable[[], None]]) -> Iterator[None]:
    """Run functions in threads until the block ends; an exception in one of them is a violation."""

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except Exception:
            history.notes.append(f"the driver itself failed: {traceback.format_exc()}")

    threads = [threading.Thread(target=guarded, args=[one]) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _watch(world: World, stub: SidecarServiceStub, solo: Mapping[Ask, str], over: threading.Event) -> None:
    """Look at the budgets and at what has ended, and start a daemon when a failpoint has killed it."""
    while not over.wait(SAMPLE_SECONDS):
        world.mend()
        world.sample(stub)
        settle(world.history, solo)


def _disturb(world: World, stub: SidecarServiceStub, seconds: float, over: threading.Event, rng: random.Random) -> None:
    """Do harm; most times only once the daemon has recovered from what was done before."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if rng.random() < 0.7:
            world.until_ready(stub, left)
        if rng.random() < 0.5:
            _until_answered(world.history, over, min(left, PATIENCE_SECONDS))
        over.wait(min(left, rng.uniform(0.2, 4)))
        fault = rng.choices(["kill engine", "stop engine", "kill parent", "end parent"], [4, 1, 2, 2])[0]
        world.history.faults.append(fault)
        if fault == "kill engine":
            world.signal_engine(stub, signal.SIGKILL)
        elif fault == "stop engine":
            world.signal_engine(stub, signal.SIGSTOP)
        else:
            world.restart(signal.SIGKILL if fault == "kill parent" else signal.SIGTERM)


def _until_answered(history: History, over: threading.Event, seconds: float) -> None:
    """Wait until some streams have ended well: on a slow machine, every life of the daemon would else end before."""
    deadline, first = time.monotonic() + seconds, len(history.streams)
    while time.monotonic() < deadline and not over.is_set():
        if sum(stream.ends == [OK] for stream in history.streams[first:]) >= ANSWERS:
            break
        over.wait(0.2)


def _report(history: History, found: list[str]) -> Report:
    return Report(
        found,
        Counter(end for stream in history.streams for end in stream.ends),
        Counter(fault for fault in history.faults if not fault.startswith("start ")),
        sum(stream.cached > 0 for stream in history.streams),
        sum(stream.from_disk > 0 for stream in history.streams),
        len(history.invalidations),
        history.sampled,
    )
