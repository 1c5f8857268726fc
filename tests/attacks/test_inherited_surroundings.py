"""What a shell hands on: few open files, as on a Mac, and paths that are relative to the directory that it is in."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daemon.cli import main, starting
from daemon.server.group import joiner
from daemon.shared import logs, process_setup
from daemon.shared.config import Config
from daemon.shared.process_setup import OPEN_FILES, OUTPUT_BYTES, settle_places
from tests.support.daemons import environment
from tests.support.groups import write_key

USAGE = 2


@pytest.fixture(name="shell_of_a_mac")
def _shell_of_a_mac() -> Iterator[None]:
    """Lower the limit of open files to that of a shell on macOS, or what is open, until the end of the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(map(int, os.listdir("/dev/fd"))) + 32
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(256, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _as_many_files_as_a_daemon() -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    return soft == resource.RLIM_INFINITY or soft >= most


@pytest.mark.usefixtures("shell_of_a_mac")
def test_rank_may_open_as_many_files_as_a_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engine inherits the limit, and opens all files of a model at once; large models have some hundred."""
    monkeypatch.setattr(process_setup, "check_limits", lambda: sys.exit("set up"))
    config = Config(state_dir=folder, group_listen="127.0.0.1:0", group_key_file=write_key(folder / "key"))
    with pytest.raises(SystemExit, match="set up"):
        joiner.run(config)
    assert _as_many_files_as_a_daemon()


@pytest.mark.usefixtures("shell_of_a_mac")
def test_door_by_hand_may_open_as_many_files_as_a_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 512 connections; without descriptors, clients of a few hundred would hang."""
    monkeypatch.setattr(logs, "configure", lambda level, file: None)
    (folder / "http_token").touch()
    (folder / "http_token").chmod(0o644)
    refused = CliRunner().invoke(main, ["http", "--port", "0"], env=environment(folder))
    assert refused.exit_code == USAGE
    assert _as_many_files_as_a_daemon()


def test_relative_places_of_libraries_stay_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon works in /: its engine would look for models there, and `ls` of a shell elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", "hub")
    monkeypatch.setenv("HF_HOME", "~/hf")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    settle_places()
    kept = [os.environ[name] for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")]
    assert kept == [f"{tmp_path}/hub", "~/hf", ""]


def test_relative_places_reach_a_daemon_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started in /."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", "hub")
    seen = []

    def started(*_: object, **__: Any) -> None:
        seen.append(os.environ["HF_HUB_CACHE"])

    monkeypatch.setattr(subprocess, "Popen", started)
    starting._detached(["program"], tmp_path / "stderr")
    assert seen == [f"{tmp_path}/hub"]


@pytest.mark.parametrize("service", ["com.mlx-sidecar.daemon", "0", ""])
def test_large_file_for_output_is_emptied_for_a_service_alone(folder: Path, service: str) -> None:
    """launchd appends to it for ever; a file that a person redirects the output to is theirs."""
    output = folder / "output"
    output.write_bytes(bytes(OUTPUT_BYTES + 1))
    with output.open("ab") as stderr:
        environ = {**environment(folder), "XPC_SERVICE_NAME": service}
        subprocess.run([sys.executable, "-m", "daemon", "nonsense"], env=environ, stderr=stderr, check=False)
    said = output.read_bytes()
    assert b"No such command" in said
    assert (len(said) < OUTPUT_BYTES) is (service == "com.mlx-sidecar.daemon")
