"""One thing that was looked at, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a finding means."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    The result of one check.

    Attributes:
        check: What was looked at.
        verdict: What it means.
        found: What there is, with its figures.
        fix: What to do about it; empty if nothing has to be done.
    """

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, fix: str) -> Finding:
    """Return a finding that works, but not as well as it could."""
    return Finding(check, Verdict.WARNING, found, fix)


def failed(check: str, found: str, fix: str) -> Finding:
    """Return a finding that has to be mended."""
    return Finding(check, Verdict.FAILED, found, fix)


def skipped(check: str, why: str) -> Finding:
    """Return a finding of something that there is nothing to look at."""
    return Finding(check, Verdict.SKIPPED, why)
