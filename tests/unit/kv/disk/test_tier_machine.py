"""In any order of calls, faults and restarts, prefix cache and disk tier restore the right tokens and leak nothing."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daemon.kv.disk.restores import Restore
from daemon.kv.idle import IdleRelease
from daemon.kv.spec import Resume
from tests.unit.kv.disk.fake_disk import FakeDisk, MemoryFiles
from tests.unit.kv.disk.random_prompts import NAMESPACES, PROMPTS
from tests.unit.kv.fake_kv import BLOCK_BYTES, LAYOUTS, FakePrefixes
from tests.unit.kv.random_prompts import floor_to_block


class DiskTierMachine(RuleBasedStateMachine):
    """Random calls, compared with a list of all prompts that were stored and not forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[tuple[str, list[int]]] = []
        self.forgotten: list[tuple[str, list[int]]] = []
        self.restores: list[Restore] = []
        self.early: list[tuple[Restore, str]] = []
        """Restores whose model is still to be loaded, and the namespace that it will turn out to have."""

    @initialize(
        parts=st.sampled_from(LAYOUTS),
        room=st.integers(4, 12) | st.just(1000),
        wanted=st.sampled_from([60_000, 120_000, 10**6]),
    )
    def start(self, parts: object, room: int, wanted: int) -> None:
        """Choose the layout and the limits."""
        self.parts, self.room, self.wanted = parts, room, wanted
        self.files = MemoryFiles()
        self._begin(1e9)
        self.disk.settle()

    def _begin(self, now: float) -> None:
        prefixes = FakePrefixes(1000, self.room * BLOCK_BYTES, parts=self.parts)  # type: ignore[arg-type]
        self.disk = FakeDisk(prefixes, self.files, self.wanted, now)
        self.idle = IdleRelease(prefixes.cache.trie, lambda: self.disk.now, 400.0, self.disk.tier)

    def restart(self) -> None:
        """Kill the engine: what its threads had to do is lost, and memory is empty."""
        self.restores.clear()
        self.early.clear()
        self.files.fault = None
        self._begin(self.disk.now)
        self.disk.work(1)

    def store(self, namespace: str, tokens: list[int]) -> None:
        """Store a prompt."""
        self.disk.knows(namespace)
        self.disk.prefixes.store(namespace, tokens, Resume.YES)
        self.stored.append((namespace, tokens))
        self.forgotten = [each for each in self.forgotten if not self._revived(each, namespace, tokens)]

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def write(self, namespace: str, tokens: list[int]) -> None:
        """Store a prompt and use it again, and let it be written."""
        self.store(namespace, tokens)
        self.reuse(namespace, [*tokens, 9])
        self.disk.settle()

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def reuse(self, namespace: str, tokens: list[int]) -> None:
        """Look a prompt up in memory and restore it, which makes the tier write it."""
        restored = self.disk.prefixes.reuse(namespace, tokens)
        assert restored == tokens[: len(restored)]
        self._is_allowed(namespace, restored)

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def begin_restore(self, namespace: str, tokens: list[int]) -> None:
        """Begin to restore a prompt from the disk."""
        self.restores.append(self.disk.restoring(namespace, tokens))

    @rule(namespace=NAMESPACES, tokens=PROMPTS, found=NAMESPACES)
    def read_ahead(self, namespace: str, tokens: list[int], found: str) -> None:
        """Begin to read a prompt while its model is loaded; the content may turn out to be another one."""
        restore = self.disk.tier.restore()
        restore.begin(tokens, lambda: namespace)
        self.early.append((restore, found))

    @precondition(lambda self: self.early)
    @rule()
    def loaded(self) -> None:
        """The model is loaded: what was read is copied into memory."""
        restore, namespace = self.early.pop(0)
        self.disk.knows(namespace)
        restore.go(namespace, self.parts)  # type: ignore[arg-type]
        self.restores.append(restore)

    @precondition(lambda self: self.early or self.restores)
    @rule(which=st.integers(0, 9))
    def give_up(self, which: int) -> None:
        """A request goes while it waits."""
        waiting = [*self.restores, *(restore for restore, _ in self.early)]
        chosen = waiting[which % len(waiting)]
        chosen.close()
        self.restores = [restore for restore in self.restores if restore is not chosen]
        self.early = [each for each in self.early if each[0] is not chosen]

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def keep(self, namespace: str, tokens: list[int]) -> None:
        """Keep a prompt for a while, which writes it."""
        self.disk.prefixes.cache.keep(namespace, [*tokens, 9], self.disk.prefixes.parts, 100.0)

    @rule(namespace=NAMESPACES, tokens=PROMPTS, memory=st.sampled_from(["stays", "evicted", "restarted"]))
    def restore(self, namespace: str, tokens: list[int], memory: str) -> None:
        """Restore a prompt from the disk at once."""
        if memory == "restarted":
            self.restart()
        elif memory == "evicted":
            self.disk.prefixes.cache.shed(10**9)
        restored = self.disk.restore(namespace, [*tokens, 9])
        assert restored == tokens[: len(restored)]
        self._is_allowed(namespace, restored)

    @rule()
    def settle(self) -> None:
        """Let both threads do all that there is; then nothing is on its way, or waits for room that is there."""
        while self.early:
            self.loaded()
        self.disk.settle()
        assert self.disk.tier.staged == 0
        assert all(restore.over() for restore in self.restores)

    @rule(room=st.booleans())
    def memory(self, room: bool) -> None:
        """Let memory be short, or not any more."""
        self.disk.has_room = room

    @rule(slices=st.integers(1, 5), work=st.integers(0, 3), prompts=st.booleans())
    def turn(self, slices: int, work: int, prompts: bool) -> None:
        """Let the engine take some turns, and the disk do some work."""
        self.disk.work(work)
        for _ in range(slices):
            if self.disk.tier.busy:
                self.disk.tier.step(prompts=prompts)

    @rule(namespace=NAMESPACES, tokens=PROMPTS, write=st.booleans())
    def fault(self, namespace: str, tokens: list[int], write: bool) -> None:
        """Let the disk fail for a while."""
        self.files.fault = OSError(28, "full")
        self.write(namespace, tokens) if write else self.restore(namespace, tokens, "evicted")
        self.files.fault = None
        self.disk.now += 60
        self.disk.tier.tick()

    @rule(namespace=NAMESPACES, tokens=PROMPTS, place=st.integers(0, 2**20), bit=st.integers(0, 7))
    def flip(self, namespace: str, tokens: list[int], place: int, bit: int) -> None:
        """Change a bit of a file, and restore."""
        for name, content in sorted(self.files.content.items())[:1]:
            changed = bytearray(content)
            changed[-1 - place % len(changed)] ^= 1 << bit
            self.files.content[name] = bytes(changed)
        self.restore(namespace, tokens, "evicted")

    @rule(seconds=st.sampled_from([1, 40, 400]), jump=st.sampled_from([0, -5000, 90_000]))
    def time_passes(self, seconds: int, jump: int) -> None:
        """Let time pass, and the clock of the day jump."""
        self.disk.now += seconds
        self.disk.jumped += jump
        self.disk.tier.tick()
        self.idle.release()

    @rule(blocks=st.integers(1, 3))
    def shed(self, blocks: int) -> None:
        """Evict some under memory pressure."""
        self.disk.prefixes.cache.shed(blocks * BLOCK_BYTES)

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def forget_prefix(self, namespace: str, tokens: list[int]) -> None:
        """Forget all prompts that begin with some tokens; the call returns once the files are gone."""
        self._open()
        self.disk.prefixes.cache.forget_prefix(namespace, tokens)
        self.disk.settle()
        assert self.disk.tier.settled
        self.forgotten.append((namespace, tokens))

    @rule(namespace=st.just("n/two"))
    def clear(self, namespace: str) -> None:
        """Forget a namespace."""
        self._open()
        self.disk.prefixes.cache.clear(namespace.__eq__)
        self.disk.settle()
        self.forgotten.append((namespace, []))
        self.stored = [(name, tokens) for name, tokens in self.stored if name != namespace]

    @invariant()
    def is_sound(self) -> None:
        """Recount, and compare with the limits."""
        if hasattr(self, "disk"):
            self.disk.check()
            assert self.disk.prefixes.cache.trie.leases == 0

    def _open(self) -> None:
        """An invalidation waits until the directory is open, and for nothing else that is under way."""
        self.files.fault = None
        if not self.disk.tier.open:
            self.disk.now += 60
            self.disk.tier.tick()
            self.disk.settle()

    def _is_allowed(self, namespace: str, restored: list[int]) -> None:
        """Check that tokens were stored, and were not forgotten since."""
        if restored:
            assert any(name == namespace and known[: len(restored)] == restored for name, known in self.stored)
            for name, known in self.forgotten:
                if name == namespace and (floor_to_block(len(known)) or not known):
                    assert restored[: len(known)] != known

    def _revived(self, forgotten: tuple[str, list[int]], namespace: str, tokens: list[int]) -> bool:
        """Whether a prompt that begins with what was forgotten is stored again."""
        name, known = forgotten
        return name == namespace and tokens[: len(known)] == known


DiskTierMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True, derandomize=False
)
TestDiskTierMachine = DiskTierMachine.TestCase


@pytest.mark.slow
def test_disk_tier_matches_its_model_at_random() -> None:
    """Many more examples."""
    run_state_machine_as_test(
        DiskTierMachine,
        settings=settings(max_examples=2000, stateful_step_count=80, deadline=None, print_blob=True, database=None),
    )
