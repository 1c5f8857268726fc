"""Agents of launchd whose daemon has a fake engine."""

from __future__ import annotations

import sys
from collections.abc import Callable

from daemon.launchd.agent import Agent
from tests.unit.launchd.conftest import ROOT
from tests.unit.launchd.mac import Mac

Make = Callable[[bool], Agent]


def agent_of(mac: Mac, **environment: str) -> Make:
    """Return what makes an agent whose daemon has a fake engine."""

    def make(background: bool) -> Agent:
        given = {"PYTHONPATH": str(ROOT), "MLX_SIDECAR_LOG_FILE": str(mac.logs / "daemon.log"), **environment}
        program = (sys.executable, "-m", "tests.support.serve_fake")
        return Agent(program, given, mac.logs / "launchd.log", background)

    return make
