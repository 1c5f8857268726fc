"""The result of one check: its verdict, its details and its fix."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The verdict of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    The result of one check.

    Attributes:
        check: Name of the check.
        verdict: Its verdict.
        found: What it found, with figures.
        fix: What to do; empty if nothing has to be done.
    """

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, fix: str) -> Finding:
    """Return a finding that does not stop the daemon, but limits it."""
    return Finding(check, Verdict.WARNING, found, fix)


def failed(check: str, found: str, fix: str) -> Finding:
    """Return a finding that has to be fixed."""
    return Finding(check, Verdict.FAILED, found, fix)


def skipped(check: str, why: str) -> Finding:
    """Return the finding of a check that does not apply here."""
    return Finding(check, Verdict.SKIPPED, why)
