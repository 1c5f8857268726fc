"""A home directory with a launchd of its own, as on a Mac, and the program as a person runs it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.launchd.agent import DAEMON
from daemon.launchd.job import Job


@dataclass(slots=True)
class Mac:
    """
    A home directory, and a launchd that runs its jobs.

    Attributes:
        folder: Holds everything.
        environ: Environment of a shell there.
    """

    folder: Path
    environ: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def launchd(self) -> Path:
        return self.folder / "launchd"

    @property
    def plist(self) -> Path:
        return self.home / "Library" / "LaunchAgents" / f"{DAEMON.label}.plist"

    @property
    def logs(self) -> Path:
        return self.home / "Library" / "Logs" / "mlx-sidecar"

    @property
    def socket(self) -> Path:
        return self.home / ".mlx-sidecar" / "sidecar.sock"

    @property
    def target(self) -> str:
        return f"gui/{os.getuid()}/{DAEMON.label}"

    def settings(self, **settings: Any) -> None:
        """Change how launchd behaves from now on."""
        (self.launchd / "settings.json").write_text(json.dumps(settings))

    def calls(self) -> list[list[str]]:
        """Return the arguments of all calls of launchctl so far, those that only look left out."""
        file = self.launchd / "calls"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [call for call in calls if call[0] != "print"]

    def launchctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run launchctl."""
        return subprocess.run(["launchctl", *arguments], env=self.environ, capture_output=True, text=True)

    def job(self) -> Job:
        """Return what launchd says of the service, which must be loaded."""
        shown = self.launchctl("print", self.target)
        assert shown.returncode == 0, shown.stderr
        return Job.parse(shown.stdout)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `mlx-sidecar`."""
        return subprocess.run(
            [sys.executable, "-m", "daemon", *arguments],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def service(self, *arguments: str, status: int = 0, **environ: str) -> str:
        """Run `mlx-sidecar service`, check its exit status, and return what it printed."""
        done = self.run("service", *arguments, **environ)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def state(self, status: int = 0) -> dict[str, Any]:
        """Return what `service status --json` prints."""
        return dict(json.loads(self.service("status", "--json", status=status)))
