"""Prefixes on the disk, with real processes: they outlive a daemon that is killed, and the command line sees them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mlx_sidecar import Client, Completion, SidecarError
from tests.support.daemons import RunningDaemon, wait_until

TEXT = "A prefix on the disk outlives the daemon. " * 20


def ask(client: Client) -> Completion:
    """Return the answer to the prompt."""
    return client.complete("embedded", TEXT, max_tokens=8)


def files(daemon: RunningDaemon) -> list[Path]:
    """Return the pieces on the disk."""
    return sorted((daemon.folder / "kv").glob("*.kv"))


def killed(daemon: RunningDaemon) -> None:
    """Kill a daemon at once, and wait until its engine is gone too."""
    daemon.signal(signal.SIGKILL)
    daemon.wait()


def cache(daemon: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `mlx-sidecar cache`."""
    return cli(daemon, "cache", *arguments)


def cli(daemon: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mlx-sidecar`."""
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.run(command, env=daemon.environ, capture_output=True, text=True, timeout=60)


Start = Callable[..., RunningDaemon]


def with_a_prefix(start_daemon: Start, **settings: str) -> RunningDaemon:
    """Return a daemon that has written a prefix."""
    daemon = start_daemon(**settings)
    with daemon.client() as client:
        ask(client)
        ask(client)
        wait_until(lambda: client.stats().prefix_cache.disk_written_bytes > 0, "the prefix is written")
    return daemon


def test_reads_do_not_wait_for_a_slow_write(start_daemon: Start) -> None:
    killed(with_a_prefix(start_daemon))
    daemon = start_daemon(test_failpoints="disk.written=sleep:60")
    with daemon.client() as client:
        for _ in range(2):
            client.complete("embedded", "Another prefix is being written. " * 20, max_tokens=8)
        private = daemon.folder / "kv"
        wait_until(lambda: any(private.glob("*.kv.new")), "a write is in progress")
        assert ask(client).usage.cached_tokens > 0
        assert client.stats().prefix_cache.disk_hits == 1
    killed(daemon)


def test_prefix_outlives_a_killed_daemon(start_daemon: Start) -> None:
    """The first answer after it computes 16 tokens and its suffix at most; `cache` shows where it is."""
    daemon = with_a_prefix(start_daemon)
    killed(daemon)
    shown = json.loads(cache(daemon, "ls", "--json").stdout)["models"]
    assert [(each["model"], each["files"]) for each in shown] == [("embedded", len(files(daemon)))]
    assert "none damaged" in cache(daemon, "verify").stdout
    daemon = start_daemon()
    with daemon.client() as client:
        wait_until(lambda: client.stats().prefix_cache.disk_blocks > 0, "the directory is open")
        warm = ask(client)
        cold = client.complete("embedded", TEXT, max_tokens=8, cache_mode="bypass")
        assert warm.text == cold.text
        assert warm.usage.prompt_tokens - warm.usage.cached_tokens <= 16
        assert client.stats().prefix_cache.disk_tokens_reused == warm.usage.cached_tokens
    (line,) = (line for line in daemon.log() if line.get("disk_tokens"))
    assert line["disk_tokens"] == warm.usage.cached_tokens
    assert cache(daemon, "rm", "embedded", "--yes").returncode == 0
    assert files(daemon) == []


def test_invalidated_prefix_stays_away_after_a_kill(start_daemon: Start) -> None:
    """The daemon is killed as soon as the call has returned."""
    daemon = with_a_prefix(start_daemon)
    with daemon.client() as client:
        client.invalidate_prefix("embedded", TEXT[:100])
        killed(daemon)
    assert files(daemon) == []
    with start_daemon().client() as client:
        assert ask(client).usage.cached_tokens == 0


@pytest.mark.parametrize("place", ["disk.part", "disk.synced", "disk.renamed"])
def test_engine_that_dies_in_a_write_answers_as_before(start_daemon: Start, place: str) -> None:
    """Its successor finds a whole piece or none."""
    daemon = start_daemon(test_failpoints=f"{place}=kill@1")
    with daemon.client() as client:
        cold = ask(client)
        first = client.stats().engine.pid
        with suppress(SidecarError):  # it dies in the middle of the answer, or after it
            ask(client)
        wait_until(lambda: client.stats().engine.restarts > 0, f"the engine {first} dies")
    killed(daemon)
    with start_daemon().client() as client:
        assert ask(client).text == cold.text
    assert "none damaged" in cache(daemon, "verify").stdout


def test_damage_is_shown_and_mended(start_daemon: Start) -> None:
    """`cache verify` names the file and fails; the daemon removes it, and without one `cache rm` does."""
    daemon = with_a_prefix(start_daemon)
    killed(daemon)
    (path, *_others) = files(daemon)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    verified = cache(daemon, "verify")
    assert verified.returncode == 1
    assert path.name in verified.stdout
    assert cache(daemon, "rm", "--all", "--yes").returncode == 0
    assert files(daemon) == []
    assert "No prefix" in cache(daemon, "ls").stdout


def test_directory_that_cannot_be_used_is_told(start_daemon: Start) -> None:
    """By `ps`, and by `cache rm`, which removes nothing then; the next start that can use it does."""
    daemon = with_a_prefix(start_daemon)
    killed(daemon)
    (daemon.folder / "kv").chmod(0o755)
    daemon = start_daemon()
    with daemon.client() as client:
        ask(client)
        wait_until(lambda: client.stats().prefix_cache.disk_faults > 0, "the directory was tried")
        assert "the directory cannot be used" in cli(daemon, "ps").stdout
        assert "still in" in cache(daemon, "rm", "embedded", "--yes").stdout
    killed(daemon)
    assert files(daemon)
    (daemon.folder / "kv").chmod(0o700)
    daemon = start_daemon()
    with daemon.client() as client:
        assert ask(client).usage.cached_tokens == 0
        wait_until(lambda: not files(daemon), "what was invalidated is removed")


def test_tier_that_is_turned_off_leaves_nothing(start_daemon: Start) -> None:
    """Its files are removed at the next start. Those of a group that it is in no more are noted at an Invalidate."""
    killed(with_a_prefix(start_daemon))
    daemon = start_daemon(kv_disk_mb="0")
    with daemon.client() as client:
        assert ask(client).usage.cached_tokens == 0
        wait_until(lambda: not files(daemon), "the files are removed")
        assert client.stats().prefix_cache.disk_budget_bytes == 0
        (daemon.folder / "kv" / "group").mkdir()
        client.invalidate_all()
        assert len(list(daemon.folder.glob("kv-invalidated-*"))) == 1
