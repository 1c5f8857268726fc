"""Log lines of the disk tier say where a fault occurred: on this machine, or at another rank of a group."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.kv.disk.log_lines import log_fault
from daemon.shared.errors import Reason, SidecarError


@pytest.mark.parametrize(
    "kind", ["open", "read", "restore", "slow", "remove", "empty", "write", "index", "space", "encode"]
)
@pytest.mark.parametrize(
    ("metadata", "where"),
    [
        ({"rank": "1", "directory": "/other/kv"}, {"rank": 1, "directory": "/other/kv"}),
        ({"rank": "0"}, {"rank": 0, "directory": None}),
        ({}, {"directory": "/own/kv"}),
    ],
)
def test_fault_of_a_rank_names_its_directory(kind: str, metadata: dict[str, str], where: dict[str, Any]) -> None:
    """On each rank: the directory of the rank that logs it is not meant."""
    with capture_logs() as lines:
        log_fault(kind, SidecarError(Reason.MACHINE_FAULT, "it fails", metadata=metadata), "/own/kv")
    (line,) = lines
    assert {key: value for key, value in line.items() if key in ("rank", "directory")} == where
