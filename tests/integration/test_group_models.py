"""`mlx-sidecar group test` between two machines, each with a Hub cache of its own. No engine runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import RunningDaemon, environment
from tests.support.groups import address_of, join, write_key
from tests.support.models import copy_of_embedded

COMMIT = "c" * 40


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def cached(hub: Path, name: str, model: Path) -> None:
    """Put a model into a Hub cache."""
    repo = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)


@pytest.fixture(name="hubs")
def _hubs(folder: Path) -> list[Path]:
    """Return the caches of two machines: the second lacks a model, and has another content of the next."""
    models = [copy_of_embedded(folder, name) for name in ("one", "other")]
    hubs = [folder / "hub0", folder / "hub1"]
    for hub in hubs:
        cached(hub, "org/both", models[0])
    cached(hub=hubs[0], name="org/lacking", model=models[0])
    for hub, model in zip(hubs, models, strict=True):
        cached(hub, "org/changed", model)
    return hubs


@pytest.fixture(name="joined")
def _joined(folder: Path, hubs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDaemon]:
    """Return the second machine, which listens."""
    monkeypatch.setenv("HF_HUB_CACHE", str(hubs[1]))
    (folder / "1").mkdir()
    running = join(folder / "1", "127.0.0.1:0", write_key(folder / "key"))
    try:
        yield running
        running.stop()
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.wait()


def outcome(folder: Path, joined: RunningDaemon, hub: Path, names: list[str], *options: str) -> tuple[int, str]:
    """Return the exit status of the command on the first machine, and what it printed."""
    environ = environment(
        folder / "0",
        group_ranks=f"127.0.0.1,{address_of(joined)}",
        group_key_file=str(folder / "key"),
        group_models=",".join(f"{name}=tensor" for name in names),
    )
    line = [sys.executable, "-m", "daemon", "group", "test", *options]
    ended = subprocess.run(line, env={**environ, "HF_HUB_CACHE": str(hub)}, stdout=subprocess.PIPE, text=True)
    return ended.returncode, ended.stdout


def test_each_rank_tells_its_models(folder: Path, joined: RunningDaemon, hubs: list[Path]) -> None:
    """Text and JSON name what is missing or differs, where, and what to do; the exit status is 1."""
    names = ["org/both", "org/lacking", "org/changed"]
    status, text = outcome(folder, joined, hubs[0], names, "--json")
    (link,) = json.loads(text)
    assert status == 1
    assert [one["state"] for one in link["models"]] == ["same", "missing", "different"]
    both, lacking, changed = link["models"]
    assert both["here"] == both["there"]
    assert both["here"]["fingerprint"]
    assert "mlx-sidecar pull org/lacking" in lacking["there"]["problem"]
    assert changed["here"]["fingerprint"] != changed["there"]["fingerprint"]

    status, text = outcome(folder, joined, hubs[0], names)
    address = address_of(joined)
    assert status == 1
    assert f"org/lacking cannot be loaded on {address}" in text
    assert f"org/changed has another content on {address}" in text
    assert changed["there"]["fingerprint"] in text


def test_equal_ranks_pass(folder: Path, joined: RunningDaemon, hubs: list[Path]) -> None:
    status, text = outcome(folder, joined, hubs[0], ["org/both"])
    assert status == 0
    assert "same" in text
