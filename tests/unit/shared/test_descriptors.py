"""Descriptors that a process inherits are closed, whatever the limit of open files is."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from daemon.shared.descriptors import MOST, close_others

CLOSES = """
import os
from daemon.shared.descriptors import close_others
kept, closed = os.pipe()
close_others(kept)
os.fstat(kept)
try:
    os.fstat(closed)
except OSError:
    print("closed")
"""


def test_all_others_are_closed() -> None:
    ended = subprocess.run([sys.executable, "-c", CLOSES], stdout=subprocess.PIPE)
    assert ended.stdout == b"closed\n"


@pytest.mark.parametrize(
    ("limit", "last"), [(8192, 8192), (-1, MOST), (2**63 - 1, MOST), (resource.RLIM_INFINITY, MOST), (2**30, MOST)]
)
def test_no_limit_of_open_files_closes_as_well(monkeypatch: pytest.MonkeyPatch, limit: int, last: int) -> None:
    """Of macOS it is a number too large for the call, which was an error; of Linux one that closed nothing."""
    closed: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(os, "closerange", lambda first, after: closed.append((first, after)))
    close_others(9, 5)
    assert closed == [(3, 5), (6, 9), (10, last)]
