"""Prefixes on the disk that are invalidated, or of another salt, are not found after a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import TINY, adapter_of
from tests.unit.engine.disk_engines import restarted, written
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Harness, generate

BYPASS = pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS)
TEXT = "The disk keeps what was used again. " * 12


@pytest.mark.parametrize("salt", ["", "secret"])
@pytest.mark.parametrize("target", ["model", "prefix", "all"])
def test_invalidated_prefix_is_gone_after_a_restart(engine: Callable[..., Harness], target: str, salt: str) -> None:
    """Also in an engine that has not seen the model yet; its files are gone when the call returns."""
    request = generate(TEXT, cache=pb.CacheOptions(salt=salt))
    harness = engine()
    harness.run(request)
    harness.run(request)
    written(harness)
    harness = restarted(harness, engine)
    invalidate = {
        "model": pb.InvalidateRequest(model=pb.ModelTarget(model="embedded", prefixes=True)),
        "prefix": pb.InvalidateRequest(prefix=pb.PrefixTarget(model="embedded", text=TEXT[:200], salt=salt)),
        "all": pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)),
    }[target]
    folder = harness.engine._disk.work._files.folder
    assert list(folder.glob("*.kv"))
    assert not harness.run(invalidate).failure.message
    assert not list(folder.glob("*.kv"))
    harness = restarted(harness, engine)
    assert harness.run(request).cached == 0


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("target", ["model", "prefix"])
def test_invalidated_prefix_of_an_adapter_is_gone_after_a_restart(
    engine: Callable[..., Harness], tmp_path: Path, target: str, away: bool
) -> None:
    """An engine that has not seen the adapter finds its pieces by the model's name, once the directory is there."""
    path = write(tmp_path, Family("qwen3"))
    adapter = adapter_of(tmp_path / "adapter", TINY["qwen3"])
    request = generate(TEXT, model=str(path), adapter=str(adapter))
    harness = first = engine()
    for each in (request, request, generate(TEXT, model=str(path)), generate(TEXT, model=str(path))):
        harness.run(each)
    written(harness)
    folder = harness.engine._disk.work._files.folder
    assert len(list(folder.glob("*.kv"))) == 2
    harness = engine(kv_disk_dir=folder) if away else restarted(harness, engine)
    invalidate = {
        "model": pb.InvalidateRequest(model=pb.ModelTarget(model=str(path), prefixes=True)),
        "prefix": pb.InvalidateRequest(prefix=pb.PrefixTarget(model=str(path), text=TEXT[:200])),
    }[target]
    assert not harness.run(invalidate).failure.message
    if away:
        first.close()
        first.engine._disk.work._files.close()
        harness.clock_offset += 2
        harness.until(lambda: harness.engine._disk.open and harness.engine._disk.settled)
    assert not list(folder.glob("*.kv"))
    assert harness.run(request).cached == 0


def test_other_salt_finds_nothing_on_the_disk(engine: Callable[..., Harness]) -> None:
    """Nor does a request without one; the salt itself lies in no file."""
    harness = engine()
    for _ in range(2):
        harness.run(generate(TEXT, cache=pb.CacheOptions(salt="a secret salt")))
    written(harness)
    harness = restarted(harness, engine)
    assert harness.run(generate(TEXT)).cached == 0
    assert harness.run(generate(TEXT, cache=pb.CacheOptions(salt="other"))).cached == 0
    folder = harness.engine._disk.work._files.folder
    assert not [path for path in folder.iterdir() if b"a secret salt" in path.read_bytes()]
    assert harness.run(generate(TEXT, cache=pb.CacheOptions(salt="a secret salt"))).started.disk_tokens > 0
