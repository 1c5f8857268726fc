"""Runs the system's commands for the checks. Tests replace it with recorded output."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from daemon.shared.observed_time import output_of

COMMAND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class System:
    """
    One machine.

    Attributes:
        platform: As `sys.platform`: "darwin" or "linux".
    """

    platform: str = sys.platform

    @property
    def is_mac(self) -> bool:
        """Whether it is a Mac."""
        return self.platform == "darwin"

    def run(self, *command: str) -> str | None:
        """Return the standard output of a command; None if it failed or does not exist."""
        try:
            done = output_of(command, COMMAND_SECONDS, subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError):
            return None
        if done.returncode:
            return None
        return done.stdout.decode("utf-8", "replace").strip()
