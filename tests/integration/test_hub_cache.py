"""Models in the Hub's local cache are found without a network, are the same as their copies, and stay without it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlx_sidecar
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(name="daemon")
def _daemon(start_daemon: Callable[..., RunningDaemon], folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunningDaemon:
    """Return a daemon that is offline and whose Hub cache holds org/name, laid out as huggingface_hub does it."""
    repo = folder / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    shutil.copytree(copy_of_embedded(folder), snapshot)
    weights = snapshot / "model.safetensors"
    blob = repo / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    return start_daemon()


def test_hub_id_and_a_copied_directory_are_one_model(daemon: RunningDaemon, folder: Path) -> None:
    """Branch, commit and the path of a copy name the same model, which is loaded once."""
    with daemon.client() as client:
        ready = client.load("org/name", allow_download=True)
        assert (ready.outcome, ready.revision) == ("loaded", COMMIT)
        assert client.load("org/name", revision=COMMIT).outcome == "hit"
        copy = client.load(str(folder / "model"))
        assert (copy.outcome, copy.fingerprint) == ("hit", ready.fingerprint)
        assert client.stats().models[0].info.revision == COMMIT
        assert client.stats().models[0].names == ("org/name", str(folder / "model"))
        with pytest.raises(mlx_sidecar.ModelNotCached):
            client.load("org/name", revision="v2")


def test_moved_hub_cache_serves_the_same_models(
    daemon: RunningDaemon, start_daemon: Callable[..., RunningDaemon], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page about upkeep says: one `mv`, one variable; the links in it lead to where the blobs are now."""
    weights = folder / "hub" / "models--org--name" / "snapshots" / COMMIT / "model.safetensors"
    blob = weights.resolve()
    weights.unlink()
    weights.symlink_to(Path("..", "..", "blobs", blob.name))  # relative, as huggingface_hub makes them
    with daemon.client() as client:
        before = client.load("org/name")
    assert daemon.stop() == 0
    (folder / "hub").rename(folder / "elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "elsewhere"))
    with start_daemon().client() as client:
        after = client.load("org/name")
    assert (after.outcome, after.fingerprint, after.revision) == ("loaded", before.fingerprint, COMMIT)


def _cli(daemon: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.run(command, env=daemon.environ, capture_output=True, text=True, timeout=60)


def test_pull_of_a_cached_model_loads_nothing(daemon: RunningDaemon) -> None:
    """`pull` exits with status 0, describes the model, and leaves memory unchanged."""
    with daemon.client() as client:
        client.stats()  # it listens
        shown = _cli(daemon, "pull", "org/name", "--json")
        assert (shown.returncode, json.loads(shown.stdout)["outcome"]) == (0, "estimated")
        assert "Warning: org/name was not updated; the Hub is not asked, because HF_HUB_OFFLINE" in shown.stderr
        assert client.stats().models == ()


@pytest.mark.parametrize("command", [["pull"], ["load", "--estimate-only"], ["load"]])
def test_offline_uncached_model_is_refused(daemon: RunningDaemon, command: list[str]) -> None:
    """The command exits with status 1 and the reason, for a download, a load and an estimate."""
    with daemon.client() as client:
        client.stats()
    shown = _cli(daemon, command[0], "org/other", *command[1:])
    assert shown.returncode == 1
    assert "org/other is not in the local Hub cache; the Hub is not asked, because HF_HUB_OFFLINE" in shown.stderr


def test_cached_models_are_listed_counted_and_removed(daemon: RunningDaemon, folder: Path) -> None:
    """ListModels and Tokenize find the model in the cache and load nothing; `rm` waits until it is out of memory."""
    with daemon.client() as client:
        (listed,) = [model for model in client.list_models().models if model.place == "hub_cache"]
        assert (listed.model, listed.revision, listed.complete, listed.loaded) == ("org/name", COMMIT, True, False)
        assert client.tokenize("org/name", "The sea", count_only=True).count > 0
        assert client.stats().models == ()
        with pytest.raises(mlx_sidecar.ModelNotCached, match=r"did you mean org/name\?"):
            client.tokenize("org/nam", "The sea")
        client.load("org/name")
        assert "org/name is in memory; first: mlx-sidecar stop org/name" in _cli(daemon, "rm", "org/name", "-y").stderr
        client.invalidate_model("org/name")
        assert _cli(daemon, "rm", "org/name", "-y").returncode == 0
        assert not (folder / "hub" / "models--org--name").exists()
        with pytest.raises(mlx_sidecar.ModelNotCached):
            client.load("org/name")
