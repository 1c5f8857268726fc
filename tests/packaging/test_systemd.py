"""The systemd unit of Linux starts a command that exists, gives it the time to drain, and repeats no refusal."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.cli import COMMANDS, exit_codes, main
from daemon.launchd.agent import RESERVE_SECONDS
from daemon.launchd.errors import LaunchctlError
from daemon.launchd.launchctl import Launchctl
from daemon.shared.config import Config

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "mlx-sidecar.service"
PAGE = (ROOT / "docs" / "linux.md").read_text()
UPKEEP = (ROOT / "docs" / "upkeep.md").read_text()


@pytest.fixture(name="unit")
def _unit() -> configparser.ConfigParser:
    """Return the unit; a key that is given twice would be an error of this reader."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    return unit


def test_systemd_unit_starts_an_existing_command(unit: configparser.ConfigParser) -> None:
    """From where uv and pipx put the program, with options that it knows."""
    program, command, *options = shlex.split(unit["Service"]["ExecStart"])
    assert program == "%h/.local/bin/mlx-sidecar"
    assert command == "serve"
    assert command in COMMANDS
    serve = main.get_command(None, command)  # type: ignore[arg-type]
    assert serve is not None
    serve.make_context(command, options, resilient_parsing=False).close()


def test_systemd_unit_allows_the_drain_timeout(unit: configparser.ConfigParser) -> None:
    """As launchd does: the default drain, and what follows it."""
    assert int(unit["Service"]["TimeoutStopSec"]) >= Config().drain_timeout + RESERVE_SECONDS
    assert unit["Service"]["KillMode"] == "mixed", "the parent ends its engine after the last stream"


def test_systemd_unit_asks_for_huge_pages(unit: configparser.ConfigParser) -> None:
    """By a setting of glibc; a program starts with it as ever."""
    name, value = unit["Service"]["Environment"].split("=", 1)
    assert (name, value) == ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    started = subprocess.run([sys.executable, "-c", ""], env={name: value}, capture_output=True, text=True, check=True)
    assert started.stderr == ""


def test_systemd_unit_restarts_after_crashes_only(unit: configparser.ConfigParser) -> None:
    """A configuration that is wrong stays wrong; an engine that the kernel killed is the parent's own business."""
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert int(service["RestartPreventExitStatus"]) == exit_codes.USAGE
    assert service["OOMPolicy"] == "continue"
    assert unit["Install"]["WantedBy"] == "default.target", "of the user's own manager"
    assert not {"RuntimeDirectory", "StateDirectory", "PrivateTmp"} & set(service), "the daemon's files are its own"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_analyze_finds_no_fault_in_the_unit(folder: Path) -> None:
    """It names keys that it does not know, and programs that are missing."""
    program = folder / ".local" / "bin" / "mlx-sidecar"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    verify = ["systemd-analyze", "--user", "verify", str(UNIT)]
    environ = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(verify, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_page_installs_this_unit_file() -> None:
    """And the page about upkeep removes the same."""
    source, target = re.findall(r"install -D -m 644 (\S+) (\S+)", PAGE)[0]
    assert ROOT / source == UNIT
    assert target == f"~/.config/systemd/user/{UNIT.name}"
    assert f"rm {target}" in UPKEEP
    used = set(re.findall(r"(?:systemctl --user (?:\S+ )*?|journalctl --user -u )(mlx-sidecar[\w.-]*)", PAGE + UPKEEP))
    assert used == {"mlx-sidecar"}


def test_service_on_linux_names_the_systemd_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that exists."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchctlError, match="systemd user unit") as refused:
        Launchctl(4711).domain()
    (page,) = re.findall(r"docs/\S+\.md", str(refused.value))
    assert (ROOT / page).is_file()
