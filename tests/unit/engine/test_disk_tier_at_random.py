"""A random day of a disk tier in a whole engine: answers equal those of cold runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.kv.disk.tier import REST_SECONDS
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.repetitions import scaled
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Harness
from tests.unit.engine.test_disk_tier import ask, restarted, written
from tests.unit.engine.test_reuse_matrix import ids

BYPASS, READ_WRITE = pb.CACHE_MODE_BYPASS, pb.CACHE_MODE_READ_WRITE


class Day:
    """
    An engine, its prompts, and what happens to it.

    Args:
        engine: Makes engines over the same directory.
        path: The model.
        seed: Seed of what happens.
    """

    def __init__(self, engine: Callable[..., Harness], path: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.from_disk = 0
        self._make = engine
        self._path = path
        self._harness = engine()
        beginnings = [ids(200, 1), ids(90, 2)]
        self._prompts = [beginning + ids(length, 7) for beginning in beginnings for length in (1, 40, 75)]
        self._cold = [ask(self._harness, path, prompt, BYPASS).ids for prompt in self._prompts]

    def ask(self) -> None:
        """Ask for a prompt, and compare."""
        number = self.rng.randrange(len(self._prompts))
        answer = ask(self._harness, self._path, self._prompts[number], READ_WRITE)
        assert answer.ids == self._cold[number]
        self.from_disk += answer.started.disk_tokens > 0

    def forget_memory(self) -> None:
        """Evict all that is not written, after what is being written."""
        written(self._harness)
        self._harness.engine._memory._prefixes.shed(10**12)

    def restart(self) -> None:
        """Go on with another engine, as after a kill."""
        if self.rng.random() < 0.7:
            written(self._harness)
        self._harness = restarted(self._harness, self._make)

    def damage(self) -> None:
        """Flip a bit of a file, cut it, or remove it."""
        files = sorted(self._harness.engine._disk.work._files.folder.glob("*.kv"))
        if not files:
            return
        with suppress(FileNotFoundError):  # the disk's thread may remove it at this moment
            self._damage(self.rng.choice(files))

    def _damage(self, chosen: Path) -> None:
        content = bytearray(chosen.read_bytes())
        how = self.rng.randrange(3)
        if how == 0:
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            chosen.write_bytes(content)
        elif how == 1:
            chosen.write_bytes(content[: self.rng.randrange(len(content))])
        else:
            chosen.unlink()

    def invalidate(self) -> None:
        """Invalidate a prompt's beginning; the next request with it finds no more than the block before its end."""
        number = self.rng.randrange(len(self._prompts))
        prefix = self._prompts[number][: self.rng.randrange(17, 100)]
        target = pb.PrefixTarget(model=str(self._path), tokens=pb.TokenIds(ids=prefix))
        assert not self._harness.run(pb.InvalidateRequest(prefix=target)).failure.message
        answer = ask(self._harness, self._path, self._prompts[number], READ_WRITE)
        assert answer.cached <= len(prefix)
        assert answer.ids == self._cold[number]

    def live(self, steps: int) -> None:
        """Let so many things happen."""
        things = [(self.ask, 10), (self.forget_memory, 3), (self.restart, 1), (self.damage, 1), (self.invalidate, 1)]
        for _ in range(steps):
            (happens,) = self.rng.choices([thing for thing, _ in things], [weight for _, weight in things])
            happens()
        self._harness.settle()
        self._harness.engine._disk.catalog.check()
        self._harness.engine._memory._prefixes.check_integrity()
        self._harness.clock_offset += REST_SECONDS  # memory for later reads is given up then
        self._harness.engine._disk.tick()
        self._harness.until(lambda: self._harness.engine._disk.staged == 0)


@pytest.mark.parametrize("family", ["llama/bfloat16", "gemma3_text", "qwen3_next"])
def test_answers_of_a_random_day_are_those_of_cold_runs(
    engine: Callable[..., Harness], tmp_path: Path, family: str
) -> None:
    """With evictions, restarts, damaged files and invalidations."""
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)  # noqa: T201 - shown with a failure
    day = Day(engine, write(tmp_path, Family(family)), seed)
    day.live(40)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama/bfloat16", "gemma3_text", "gpt_oss", "qwen3_next", "mamba", "falcon_h1"])
def test_answers_of_a_random_week_are_those_of_cold_runs(
    engine: Callable[..., Harness], tmp_path: Path, family: str
) -> None:
    """It is long enough that much comes from the disk."""
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)  # noqa: T201 - shown with a failure
    day = Day(engine, write(tmp_path, Family(family)), seed)
    day.live(scaled(1500))
    assert day.from_disk > 10
