"""A death or a fault at any step of a write: the next start finds whole pieces, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.kv.disk.files import Files
from daemon.shared.failpoints import ENV, PLACES, FailpointError
from tests.unit.kv.disk.pieces import PARTS, PIECE, all_steps, content, held

ROOT = Path(__file__).resolve().parents[4]

PLACES_OF_WRITES = [place for place in PLACES if place.startswith("disk.") and place != "disk.read"]

KILLED = """
import sys
from pathlib import Path
from daemon.kv.disk.files import Files
from tests.unit.kv.disk.pieces import all_steps
all_steps(Files(Path(sys.argv[1])))
"""


def two_whole_pieces_at_most(files: Files, size: int) -> None:
    """Check what the next start finds: the piece that was there, the new one or not, and nothing else."""
    files.open()
    found = files.scan(2e9)
    assert PIECE.name in held(files)
    assert len(found.pieces) == len(held(files)) <= 2
    assert content(files.read(replace(PIECE, nbytes=size))) == content(PARTS)
    for piece, _used in found.pieces:
        assert content(files.read(piece)) == content(PARTS)


@pytest.mark.parametrize("place", PLACES_OF_WRITES)
def test_death_at_any_step_leaves_whole_pieces_alone(files: Files, place: str) -> None:
    """A process is killed there."""
    size = files.write(PIECE, PARTS)
    files.close()
    environ = {**os.environ, ENV: f"{place}=kill"}
    command = [sys.executable, "-c", KILLED, str(files.folder)]
    assert subprocess.run(command, env=environ, cwd=ROOT, timeout=60).returncode == -9
    two_whole_pieces_at_most(files, size)


@pytest.mark.parametrize("place", PLACES_OF_WRITES)
def test_fault_at_any_step_leaves_whole_pieces_alone(files: Files, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no private file, even before the next start."""
    size = files.write(PIECE, PARTS)

    def fail(hit: str) -> None:
        if hit == place:
            raise FailpointError(hit)

    monkeypatch.setattr("daemon.kv.disk.files.failpoint", fail)
    with pytest.raises(FailpointError):
        all_steps(files)
    monkeypatch.undo()
    assert all(name.endswith(".kv") for name in held(files))
    two_whole_pieces_at_most(files, size)
