"""The machine, as far as commands of its own tell about it. Tests put recorded answers in its place."""

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
        """Return what a command printed, its errors left out; None if it failed or is not there."""
        try:
            done = output_of(command, COMMAND_SECONDS, subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError):
            return None
        if done.returncode:
            return None
        return done.stdout.decode("utf-8", "replace").strip()
