"""
Simulation of an hour of coding agents over prefix cache and disk tier: `python -m benchmarks.tier_traffic`.

It uses the policies themselves with a clock of its own, and KV that has sizes but no bytes. Agents have conversations
with tools that take seconds, and pauses that sometimes take minutes. Half way, the daemon is killed. The model
is a hybrid of 65 KB a token with states of 150 MB. The figures say where the tokens of prompts come from, and what is
written; they go to benchmarks/results/tier_traffic.json and into the picture of docs/kv-tier.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks import plots
from benchmarks.page import RESULTS, ROOT
from benchmarks.sized_kv import SPEC, Codec, Names, Source, copied
from daemon.kv.disk.note import Note
from daemon.kv.disk.tier import DiskTier
from daemon.kv.disk.work import DiskWork
from daemon.kv.evictor import PrefixLimits
from daemon.kv.idle import IdleRelease
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.resume import resume_points
from daemon.kv.spec import Resume

GB = 10**9
NAMESPACE, MODEL = "model/salt", "org/hybrid"
IDLE_SECONDS = 300.0

T = TypeVar("T")


@dataclass(slots=True)
class Row:
    """
    One pair of budgets.

    Attributes:
        memory_gb: Budget of memory.
        disk_gb: Budget of the disk.
        looked_up: Tokens of all prompts.
        from_memory: Tokens of them that were reused out of memory.
        from_disk: Tokens of them that were reused from the disk.
        turns: Prompts.
        written_gb: Bytes written to the disk.
        read_gb: Bytes read from the disk.
    """

    memory_gb: float
    disk_gb: float
    looked_up: int = 0
    from_memory: int = 0
    from_disk: int = 0
    turns: int = 0
    written_gb: float = 0.0
    read_gb: float = 0.0


@dataclass(slots=True)
class Agent:
    """
    An agent with one conversation after another.

    Attributes:
        rng: Its choices.
        systems: Beginnings that agents share.
        tokens: Its conversation.
        turns: Turns that are left of it.
    """

    rng: random.Random
    systems: list[list[int]]
    tokens: list[int] = field(default_factory=list)
    turns: int = 0

    def prompt(self) -> list[int]:
        """Return the prompt of its next turn."""
        if not self.turns:
            self.tokens = list(self.rng.choice(self.systems))
            self.turns = self.rng.randint(5, 40)
        self.turns -= 1
        self.tokens += self.text(self.rng.choice([100, 300, 800, 2500]))
        return self.tokens

    def answer(self) -> list[int]:
        """Return its conversation with an answer."""
        self.tokens += self.text(self.rng.choice([50, 200, 600]))
        return self.tokens

    def pause(self) -> float:
        """Return the seconds until its next turn: those of a tool, of reading, or of an absence."""
        kind = self.rng.random()
        return self.rng.uniform(3, 20) if kind < 0.8 else self.rng.uniform(30, 120) if kind < 0.95 else 900.0

    def text(self, tokens: int) -> list[int]:
        """Return a message of about so many tokens."""
        return [self.rng.randrange(2, 100_000) for _ in range(self.rng.randint(tokens // 2, tokens * 3 // 2))] + [1]


class Machine:
    """
    A daemon without model: prefix cache, disk tier, idle release.

    Attributes:
        row: Its figures.
        now: Its time in seconds.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self.now = 1e9
        self._names = Names()
        self._work: list[Callable[[], None]] = []
        self._start()

    def _start(self) -> None:
        limits = PrefixLimits(10**6, int(self.row.memory_gb * GB))
        self._prefixes = PrefixCache(limits, copy=copied, clock=self._time)
        note = Note(self._names.folder, self._names.folder)
        self._disk = DiskWork(self._names, note, self._run, self._run, self._time, self._time)
        wanted = int(self.row.disk_gb * GB)
        self._tier = DiskTier(self._disk, wanted, self._prefixes, Codec(), self._time, self._time)
        if wanted:
            self._prefixes.below = self._tier
        self._tier.begin()
        self._idle = IdleRelease(self._prefixes.trie, self._time, IDLE_SECONDS, self._prefixes.below)
        self._settle()

    def restart(self) -> None:
        """Lose what is in memory."""
        self.count()
        self._start()

    def count(self) -> None:
        """Add the bytes of the tier to the figures."""
        self.row.written_gb += self._disk.counters.written_bytes / GB
        self.row.read_gb += self._disk.counters.read_bytes / GB

    def until(self, now: float) -> None:
        """Let time pass."""
        while self.now < now:
            self.now = min(now, self.now + 5.0)
            self._tier.tick()
            self._idle.release()
            self._settle()

    def serve(self, prompt: list[int]) -> None:
        """Serve the prompt of a turn: restore, look up, and store at its resume points."""
        self._tier.knows(NAMESPACE, SPEC, MODEL)
        with self._tier.restore() as restore:
            restore.begin(prompt, lambda: NAMESPACE)
            restore.go(NAMESPACE, SPEC)
            self._settle()
        with self._prefixes.lookup(NAMESPACE, prompt, SPEC) as lease:
            cached, fork = lease.tokens, lease.branch
            from_disk = 0 if restore.in_memory is None else max(0, cached - restore.in_memory)
            if cached:
                self._prefixes.restored(lease, from_disk)
        for point in resume_points(prompt, cached, [fork], [1], len(prompt)):
            self.store(prompt[:point])
        self.row.turns += 1
        self.row.looked_up += len(prompt)
        self.row.from_disk += from_disk
        self.row.from_memory += cached - from_disk

    def store(self, tokens: list[int]) -> None:
        """Store tokens, and make their end resumable."""
        whole = tokens[: len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS]
        self._prefixes.store(NAMESPACE, whole, SPEC, Source(), resume=Resume.YES)
        self._settle()

    def _time(self) -> float:
        return self.now

    def _run(self, what: str, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._work.append(lambda: then(work()))

    def _settle(self) -> None:
        while self._work or self._tier.busy:
            while self._work:
                self._work.pop(0)()
            if self._tier.busy:
                self._tier.step()


def simulate(row: Row, agents: int, minutes: float, seed: int) -> Row:
    """Let agents work for so long, with a restart half way, and return the figures."""
    rng = random.Random(seed)
    machine = Machine(row)
    start = machine.now
    shared = Agent(rng, [])
    systems = [shared.text(tokens) for tokens in (3000, 6000, 9000, 12_000)]
    crew = [Agent(random.Random(rng.getrandbits(64)), systems) for _ in range(agents)]
    events = [(start + rng.uniform(0, 60), number) for number in range(agents)]
    heapq.heapify(events)
    restarted = False
    while events[0][0] < start + 60 * minutes:
        now, number = heapq.heappop(events)
        machine.until(now)
        if not restarted and now > start + 30 * minutes:
            restarted = True
            machine.restart()
        agent = crew[number]
        machine.serve(agent.prompt())
        machine.store(agent.answer())
        heapq.heappush(events, (now + agent.pause(), number))
    machine.count()
    return row


def main() -> int:
    """Simulate, print, write JSON, and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tier_traffic", description=__doc__)
    parser.add_argument("--agents", type=int, default=10, help="agents that work at the same time")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--memory", type=float, nargs="*", default=[4, 16], help="budgets in GB")
    parser.add_argument("--disk", type=float, nargs="*", default=[0, 8, 32], help="budgets in GB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "tier_traffic.json", help="where the figures go")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "kv-tier.svg", help="where the picture goes")
    arguments = parser.parse_args()
    rows = []
    for memory in arguments.memory:
        for disk in arguments.disk:
            row = simulate(Row(memory, disk), arguments.agents, arguments.minutes, arguments.seed)
            rows.append(row)
            shares = [f"{part / row.looked_up:.0%}" for part in (row.from_memory, row.from_disk)]
            print(f"{memory:4g} GB {disk:4g} GB disk: {row.turns} turns, {row.looked_up / 1e6:.1f} M tokens,", end=" ")
            print(f"memory {shares[0]}, disk {shares[1]},", end=" ")
            print(f"{row.written_gb:.1f} GB written, {row.read_gb:.1f} read", flush=True)
    figures = {"benchmark": "tier traffic", "agents": arguments.agents, "minutes": arguments.minutes}
    arguments.out.write_text(json.dumps({**figures, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    plots.traffic([asdict(row) for row in rows], arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
