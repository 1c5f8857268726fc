"""Parser of `launchctl print`, for one job. Apple does not promise the format; see docs/mac-checklist.md."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIELD = re.compile(r"\t([a-z ]+) = (.+)")
"""The job's own fields are indented by one tab. Fields of its coalitions, some with the same names, by more."""


@dataclass(frozen=True, slots=True)
class Job:
    """
    launchd's record of a loaded job.

    Attributes:
        state: launchd's word: "running", "not running", "spawn scheduled", "waiting" or another.
        pid: Its process; None while it has none.
        runs: How often it was started since it was loaded.
        last_exit: How the last run ended, in launchd's words: "0", "78: EX_CONFIG", "Killed: 9"; None before an end.
        exit_timeout: Seconds from SIGTERM to SIGKILL; None if launchd does not print it.
        plist: File that it was loaded from.
    """

    state: str
    pid: int | None
    runs: int
    last_exit: str | None
    exit_timeout: int | None
    plist: str | None

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read the output of `launchctl print SERVICE`."""
        fields: dict[str, str] = {}
        for line in text.splitlines():
            if match := _FIELD.fullmatch(line):
                fields.setdefault(match[1], match[2].strip())
        code = fields.get("last exit code")
        if code is not None and code.startswith("("):  # "(never exited)"
            code = None
        return cls(
            state=fields.get("state", "unknown"),
            pid=_number(fields.get("pid")),
            runs=_number(fields.get("runs")) or 0,
            last_exit=fields.get("last terminating signal") or fields.get("last exit reason") or code,
            exit_timeout=_number(fields.get("exit timeout")),
            plist=fields.get("path"),
        )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
