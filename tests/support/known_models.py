"""What loads of the embedded model find out, for daemons of tests that are not about it: they begin as a second run."""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import mlx.core as mx
from structlog.testing import capture_logs

from daemon.cache.identity import identify
from daemon.cache.mlx.computing_place import place_of
from daemon.cache.mlx.load_notes import LoadNotes, NoteFile
from daemon.cache.mlx.loader import LoadSetup, load
from daemon.cache.mlx.measurements import MEASUREMENTS, Measurements
from daemon.cache.mlx.self_tests import VERDICTS, Verdicts
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.device import device_name


def note_down(folder: Path) -> None:
    """
    Write the notes of a daemon that has loaded the embedded model into a state directory that has none.

    A daemon tests and measures the model again if they are of another place.
    """
    for name, content in _notes().items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)


@functools.cache
def _notes() -> dict[str, bytes]:
    """Return the files by name, after one load for each process of tests."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        place = place_of(device_name())
        measured = Measurements(LoadNotes(NoteFile(folder, MEASUREMENTS, place)))
        verdicts = Verdicts(LoadNotes(NoteFile(folder, VERDICTS, place)))
        setup = LoadSetup(time.monotonic, measured=measured, verdicts=verdicts)
        with capture_logs():
            deque(load(identify("embedded", EMBEDDED_PATH), 0, setup), maxlen=0)
        for thread in threading.enumerate():
            if thread.name == "save":
                thread.join()
        mx.clear_cache()
        return {kind.file_name: (folder / kind.file_name).read_bytes() for kind in (MEASUREMENTS, VERDICTS)}
