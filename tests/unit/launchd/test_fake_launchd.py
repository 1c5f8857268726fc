"""The launchd of these tests refuses what a real one refuses; a fake that takes anything would prove nothing."""

from __future__ import annotations

import os
import plistlib
from typing import Any

import pytest

from daemon.launchd.agent import DAEMON
from tests.unit.launchd.agents import agent_of
from tests.unit.launchd.mac import Mac

GUI = f"gui/{os.getuid()}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["load", "-w", "/x.plist"],
        ["bootstrap", GUI],
        ["bootstrap", "gui/4711", "/x.plist"],
        ["bootstrap", f"{GUI}/{DAEMON.label}", "/x.plist"],
        ["bootout", GUI],
        ["kickstart", "-f", f"{GUI}/{DAEMON.label}"],
        ["kill", "TERM", f"{GUI}/{DAEMON.label}"],
        ["enable", DAEMON.label],
        ["print", DAEMON.label],
    ],
    ids=" ".join,
)
def test_fake_launchd_refuses_undocumented_calls(mac: Mac, arguments: list[str]) -> None:
    """`bootout` of a whole domain, which would log the user out, is refused too."""
    assert mac.launchctl(*arguments).returncode == 64


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"EnvironmentVars": {}}, 109),
        ({"ExitTimeOut": "60"}, 109),
        ({"ProgramArguments": ["python"]}, 109),
        ({"StandardErrorPath": "~/x.log"}, 109),
        ({"EnvironmentVariables": {"A": 1}}, 109),
        ({"LimitLoadToSessionType": "Background"}, 134),
    ],
    ids=["unknown key", "type", "program", "path", "value", "session"],
)
def test_fake_launchd_refuses_an_invalid_plist(mac: Mac, change: dict[str, Any], status: int) -> None:
    """Each fault has launchd's own exit status."""
    file = mac.folder / "a.plist"
    file.write_bytes(plistlib.dumps(agent_of(mac)(False).properties() | change))
    assert mac.launchctl("bootstrap", GUI, str(file)).returncode == status


def test_fake_launchd_refuses_with_the_codes_of_macs(mac: Mac) -> None:
    """The exit statuses are 122, 5, 113 and 3, as observed on Macs."""
    file = mac.folder / "a.plist"
    file.write_bytes(plistlib.dumps(agent_of(mac)(False).properties() | {"ProgramArguments": ["/bin/sleep", "1000"]}))
    assert mac.launchctl("print", f"{GUI}/{DAEMON.label}").returncode == 113
    assert mac.launchctl("bootout", f"{GUI}/{DAEMON.label}").returncode == 3
    file.chmod(0o664)
    assert mac.launchctl("bootstrap", GUI, str(file)).returncode == 122
    file.chmod(0o644)
    mac.logs.mkdir(parents=True)
    assert mac.launchctl("bootstrap", GUI, str(file)).returncode == 0
    assert mac.launchctl("bootstrap", GUI, str(file)).returncode == 5
    assert mac.launchctl("disable", mac.target).returncode == 0
    assert mac.launchctl("bootout", mac.target).returncode == 0
    assert mac.launchctl("bootstrap", GUI, str(file)).returncode == 5, "disabled"
