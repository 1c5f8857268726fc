"""Random days of an engine: conversations, several at a time, and what happens to the engine meanwhile."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from daemon.engine import composition
from daemon.engine.memory.pressure import Level
from daemon.engine.scheduling import policy
from daemon.engine.scheduling.governor import Governor, Source
from daemon.kv.disk import write_behind
from daemon.kv.disk.tier import REST_SECONDS
from daemon.kv.mlx import disk_codec, sharing
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.heads import model_with_head
from tests.support.models import TINY, marked_model
from tests.unit.engine import harness
from tests.unit.engine.cold_runs import CLOSE, ColdRuns
from tests.unit.engine.disk_engines import restarted, written
from tests.unit.engine.families import EXACT, Family, write
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.random_requests import MARKS, TEMPLATE, Requests

MOST = 5
"""Calls that run at once."""

ANY = 10_000
"""More tokens than a prompt has."""

NO_ROOM = ("BUDGET_IN_USE", "REQUEST_EXCEEDS_MEMORY")
"""What a request may be told where memory is scarce."""


class Willing(Governor):
    """Lets all sources guess at once: measured times would decide otherwise, and differ."""

    def count(self, source: Source, most: int) -> int:
        """Return up to four."""
        return min(most, 4)

    def width(self, guesses: Sequence[tuple[Source, int]], *, waits: bool = False) -> int:
        """Return three: those of four are cut."""
        return 3


@dataclass
class Call:
    """
    A request that runs.

    Attributes:
        number: Its id.
        request: What it asks for.
        most: Tokens that it may reuse.
        held: Whether its reader lags.
    """

    number: int
    request: pb.GenerateRequest
    most: int = ANY
    held: bool = False


class Day:
    """
    An engine, those who talk with it, and what happens to it meanwhile.

    Args:
        make: Makes engines over the same directory.
        requests: What they ask for.
        cold: What they have to get.
        rng: Chooses what happens.
        disk: Whether the engines keep prefixes on the disk.
        scarce: Whether memory is scarce, so that requests may be refused.
    """

    def __init__(
        self,
        make: Callable[[], Harness],
        requests: Requests,
        cold: ColdRuns,
        rng: random.Random,
        *,
        disk: bool,
        scarce: bool,
    ) -> None:
        self.reused = 0
        self._make = make
        self._requests = requests
        self._cold = cold
        self._rng = rng
        self._scarce = scarce
        self._running: list[Call] = []
        self._disk = disk
        self._harness = self._started()

    def _started(self) -> Harness:
        harness, willing = self._make(), Willing()
        harness.engine._runner.governors.of = lambda model: willing  # type: ignore[method-assign]
        return harness

    def live(self, steps: int) -> None:
        """Let so many things happen, let all end, and look whether anything is left."""
        things: list[tuple[Callable[[], None], int]] = [
            (self.ask, 30), (self.ask_together, 5), (self.go_on, 40), (self.finish, 26), (self.cancel, 4),
            (self.hold, 6), (self.invalidate, 4), (self.forget, 2), (self.wait, 3), (self.press, 3),
        ]  # fmt: skip
        if self._disk:
            things += [(self.restart, 2), (self.forget_memory, 3), (self.damage, 2), (self.fail, 2)]
        names, weights = zip(*things, strict=True)
        for happens in self._rng.choices(names, weights, k=steps):
            happens()
        self.finish_all()
        self._harness.settle()
        assert not self._harness.engine._runner.readers.prefixes()
        self._harness.engine._disk.catalog.check()
        self._harness.clock_offset += REST_SECONDS  # memory for later reads is given up then
        self._harness.engine._disk.tick()
        self._harness.until(lambda: self._harness.engine._disk.staged == 0)

    def ask(self) -> None:
        """Begin an answer."""
        self._add(Call(0, self._requests.some()))

    def ask_together(self) -> None:
        """Begin several answers behind one history."""
        history = self._requests.history()
        for _ in range(self._rng.randint(2, MOST)):
            self._add(Call(0, self._requests.after(history)))

    def _add(self, call: Call) -> None:
        """Begin a call, unless it has begun, and let another one end if there are too many."""
        call.number = call.number or self._harness.begin(call.request)
        self._running.append(call)
        if len(self._running) > MOST:
            self.finish()

    def go_on(self) -> None:
        """Let all go on for a few steps."""
        for _ in range(self._rng.choice([1, 2, 3, 8])):
            if self._harness.engine.busy:
                self._harness.step()

    def finish(self) -> None:
        """Let an answer end, compare it, and let later requests go on after it."""
        if not self._running:
            return
        self._read_on()
        call = self._running.pop(self._rng.randrange(len(self._running)))
        answer = Answer(self._harness.finish(call.number))
        if self._scarce and answer.failure.reason in NO_ROOM:
            return
        try:
            assert answer.cached <= call.most, "tokens were reused that are invalidated"
            self._cold.check(call.request, answer)
        except AssertionError as error:
            error.add_note(f"{answer.cached} tokens reused, {answer.started.disk_tokens} of the disk: {call.request}")
            raise
        self._requests.remember(call.request, answer)
        self.reused += answer.cached

    def finish_all(self) -> None:
        """Let all answers end."""
        while self._running:
            self.finish()

    def cancel(self) -> None:
        """Cancel an answer."""
        if self._running:
            self._harness.cancel(self._running.pop(self._rng.randrange(len(self._running))).number)

    def hold(self) -> None:
        """A reader lags."""
        if self._running:
            call = self._rng.choice(self._running)
            call.held = True
            self._harness.engine._runner.hold(call.number, held=True)

    def _read_on(self) -> None:
        """All readers go on: those that lag may have all slots."""
        for call in self._running:
            if call.held:
                self._harness.engine._runner.hold(call.number, held=False)
                call.held = False

    def invalidate(self) -> None:
        """
        Invalidate a beginning, a model's prefixes or all prefixes while others run; then ask for what it was.

        What was computed before is not reused any more, also where a running request still holds it.
        """
        after = self._requests.after(self._requests.history())
        prefix = after.tokens.ids[: self._rng.randint(1, len(after.tokens.ids))]
        target = self._rng.choice(
            (
                pb.InvalidateRequest(
                    prefix=pb.PrefixTarget(model=after.model, tokens=pb.TokenIds(ids=prefix), salt=after.cache.salt)
                ),
                pb.InvalidateRequest(
                    model=pb.ModelTarget(model=after.model, prefixes=True, weights=self._rng.random() < 0.5)
                ),
                pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)),
            )
        )
        most = len(prefix) if target.HasField("prefix") else 0
        computing = [call for call in self._running if not self._harness.decoding(call.number)]
        assert not self._harness.run(target).failure.message
        if any(in_common(call.request, after) > most for call in computing):
            return  # it may be computed anew since
        self._read_on()
        number = self._harness.begin(after)
        # Until it has looked up what there is: requests that come later may pass it, and compute the same anew.
        self._harness.until(lambda: any(not event.HasField("accepted") for event in self._harness.of(number)))
        self._add(Call(number, after, most))

    def forget(self) -> None:
        """Evict a part of what is cached."""
        self._harness.engine._memory._prefixes.shed(self._rng.choice([20_000, 200_000, 10**12]))

    def forget_memory(self) -> None:
        """Evict all, after all has ended and is written: what comes next is read from the disk."""
        self._harness.pressure = Level.NORMAL
        self.finish_all()
        written(self._harness)
        self._harness.engine._memory._prefixes.shed(10**12)

    def wait(self) -> None:
        """Time passes."""
        self._harness.clock_offset += self._rng.choice([0.5, 2.0, 70.0])

    def press(self) -> None:
        """The machine is short of memory, or no longer."""
        self._harness.pressure = self._rng.choice([Level.NORMAL, Level.NORMAL, Level.WARNING, Level.CRITICAL])

    def restart(self) -> None:
        """Go on with another engine, as after a kill."""
        if self._rng.random() < 0.5:
            self.forget_memory()
        self._running.clear()
        self._harness = restarted(self._harness, self._started)

    def fail(self) -> None:
        """Let the disk fail a few times to read, or to write."""
        files, left = self._harness.engine._disk.work._files, [self._rng.randint(1, 3)]
        name = self._rng.choice(["read", "write"])
        works = getattr(type(files), name)

        def fails(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(errno.EIO, "fault")
            return works(files, *arguments)

        setattr(files, name, fails)

    def damage(self) -> None:
        """Flip a bit of a file, cut it, or remove it."""
        files = sorted(self._harness.engine._disk.work._files.folder.glob("*.kv"))
        if files:
            with suppress(FileNotFoundError):  # the disk's thread may remove it at this moment
                self._damage(self._rng.choice(files))

    def _damage(self, chosen: Path) -> None:
        content, how = bytearray(chosen.read_bytes()), self._rng.randrange(3)
        if how == 0:
            content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
            chosen.write_bytes(content)
        elif how == 1:
            chosen.write_bytes(content[: self._rng.randrange(len(content))])
        else:
            chosen.unlink()


def in_common(request: pb.GenerateRequest, after: pb.GenerateRequest) -> int:
    """Return how many tokens two prompts may begin with in common."""
    pairs = zip(request.tokens.ids, after.tokens.ids, strict=False)
    return ANY if request.HasField("chat") else sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def model_of(folder: Path, kind: str) -> str:
    """Write a model of a kind, such as "qwen3", "marked:qwen3" or "head:mimo"."""
    how, _, family = kind.rpartition(":")
    if how == "marked":
        return str(marked_model(folder, MARKS, TEMPLATE, TINY[family]))
    return str(model_with_head(folder, family, right=True) if how == "head" else write(folder, Family(family)))


def limits(rng: random.Random) -> dict[str, Any]:
    """Return limits of the prefix cache: mostly those that leave room for all."""
    settings: dict[str, Any] = {}
    if rng.random() < 0.3:
        settings["max_cache_blocks"] = rng.choice([8, 20, 60])
    else:
        settings["min_prefix_len"] = rng.choice([16, 16, 48])
    if rng.random() < 0.2:
        settings["kv_cache_mb"] = 1
    if rng.random() < 0.1:
        settings["evict_on_memory_pressure"] = False
    return settings


def a_day(
    engine: Callable[..., Harness], folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *, disk: bool
) -> Day:
    """Return a day of a model of a kind, and print its seed; small chunks, prefixes and limits are chosen as well."""
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)  # noqa: T201 - shown with a failure
    rng = random.Random(seed)
    how, _, family = kind.rpartition(":")
    cold = ColdRuns(
        engine(state_dir=folder / "cold", kv_disk_mb=0, kv_cache_mb=0),
        0.0 if family in {*EXACT, "mimo", "embedded"} else CLOSE,
        near=True,
    )
    monkeypatch.setattr(harness, "PATIENCE", 120.0)  # an answer waits for all that runs beside it
    monkeypatch.setattr(sharing, "LEAST_SHARED", rng.choice([16, 32, 64, 512]))
    if chunk := rng.choice([0, 0, 16, 23, 48]):
        monkeypatch.setattr(policy.ChunkSizer, "size", lambda *_, **__: chunk)
    if scarce := rng.random() < 0.2:
        limit = rng.choice([2000, 2500, 3200, 4500]) << 10
        monkeypatch.setattr(composition, "memory_limit", lambda _: limit)
    settings: dict[str, Any] = {"kv_disk_mb": "auto" if disk else 0, "max_batch": rng.choice([3, 4, 8])}
    settings |= limits(rng)
    for module, name in ((write_behind, "PIECE_BYTES"), (disk_codec, "PART_BYTES")):  # short pieces, and many slices
        monkeypatch.setattr(module, name, rng.choice([1, 4096, getattr(module, name)]))
    model = model_of(folder, kind)
    draft = rng.choice(["", model, model_of(folder, "llama") if kind != "llama" else ""])
    requests = Requests(rng, model, draft if how == "" else "", marked=how == "marked", head=how == "head")
    return Day(lambda: engine(**settings), requests, cold, rng, disk=disk, scarce=scarce)
