"""
Program that runs a server and counts its memory, for leak tests.

Usage: `python -m tests.support.leak_counter_process FILE MODULE [ARGUMENT ...]`

At each SIGWINCH it appends a line of JSON to the file. `bytes` are those that malloc has allocated, or the resident
bytes where malloc has no such figure. `objects` are those of Python's garbage collector. Resident pages alone are too
coarse: they change by megabytes, while the leak of one call has a few bytes.
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

from tests.support.process_usage import resident_bytes

EXACT = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Environment that makes `bytes` exact: Python allocates each object by malloc, and threads cache no free memory."""

COUNT_SIGNAL = signal.SIGWINCH
"""The daemon changes the handlers of SIGUSR1, SIGUSR2 and of all signals that end it; this one stays the counter's."""

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


def allocated_bytes() -> int:
    """Return the bytes that malloc has allocated and that were not freed."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return resident_bytes(os.getpid())
    function.restype = _MallInfo
    info = function()
    return int(info.uordblks + info.hblkhd)


def main() -> None:
    """Run the module as a program, and count at each COUNT_SIGNAL."""
    counts_file = Path(sys.argv[1])

    def count(*_: object) -> None:
        gc.collect()
        counts = {"bytes": allocated_bytes(), "objects": len(gc.get_objects())}
        with counts_file.open("a") as file:
            file.write(json.dumps(counts) + "\n")

    for name in EXACT:
        os.environ.pop(name, None)  # the engine, a child process, must not inherit them
    signal.signal(COUNT_SIGNAL, count)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
