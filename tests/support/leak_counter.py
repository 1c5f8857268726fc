"""
Runs a server that counts what it holds: `python -m tests.support.leak_counter FILE MODULE [ARGUMENT ...]`.

At each SIGURG it appends a line of JSON to the file: the `bytes` that malloc has given out (where that is unknown,
what is resident), and the `objects` that Python's collector knows. Resident pages tell too little: they come and go by
the megabyte, whatever a call costs.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

from tests.support.process import resident_bytes

EXACT = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Variables with which it is started: all of Python's objects count, and nothing that threads have only put aside."""

SIGNAL = signal.SIGURG
"""Ends no process that does not handle it, and the daemon does not touch it."""

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


def allocated_bytes() -> int:
    """Return the bytes that malloc has given out and not got back."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return resident_bytes(os.getpid())
    function.restype = _MallInfo
    info = function()
    return int(info.uordblks + info.hblkhd)


def main() -> None:
    """Run the module as a program of its own."""
    notes = Path(sys.argv[1])

    def note(*_: object) -> None:
        gc.collect()
        held = {"bytes": allocated_bytes(), "objects": len(gc.get_objects())}
        with notes.open("a") as file:
            file.write(json.dumps(held) + "\n")

    for name in EXACT:
        os.environ.pop(name, None)  # not for the engine
    signal.signal(SIGNAL, note)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
