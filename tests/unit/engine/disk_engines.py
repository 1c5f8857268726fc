"""Engines with a disk tier: what they are asked, when all is written, and what follows a death."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness


def ask(harness: Harness, path: Path, prompt: list[int], mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE) -> Answer:
    """Return the answer to a prompt."""
    return harness.run(
        pb.GenerateRequest(
            model=str(path),
            tokens=pb.TokenIds(ids=prompt),
            max_tokens=4,
            top_logprobs=0,
            stop=pb.Stop(ignore_eos=True),
            cache=pb.CacheOptions(mode=mode),
        )
    )


def written(harness: Harness) -> None:
    """Let all be written that is to be written."""
    disk = harness.engine._disk
    harness.until(lambda: disk.open and not (disk.busy or disk.writer.underway))
    harness.settle()


def restarted(harness: Harness, engine: Callable[..., Harness]) -> Harness:
    """Return an engine after another one that is gone, as if it had been killed, once it had opened its directory."""
    harness.until(lambda: not harness.engine._disk.opening)  # a thread that still opens it would lock it for good
    harness.close()
    harness.engine._disk.work._files.close()
    return engine()
