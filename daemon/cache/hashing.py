"""
SHA-256 of files while another thread reads them: the memory that a file was read into is hashed.

The reading thread puts pieces of memory into a queue for each file (`Stream`). A thread of a small pool takes them out
and hashes them. SHA-256 cannot be split: a file is hashed by a single thread. It costs about 0.5 s of processor
time for each GB where the processor has instructions for it, whatever the size of the pieces.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from daemon.cache.callbacks import Rest, ignore

_PIECE = 1 << 20
"""Bytes hashed between two rests: under a millisecond."""

_THREADS = 4


class Hashing:
    """
    Hashes up to four files at a time, each on a thread of its own. Close it; until then it refers to their memory.

    Args:
        rest: Called after each mebibyte with the processor seconds that it took; sleeps for as long as streams need.
    """

    def __init__(self, rest: Rest = ignore) -> None:
        self._rest = rest
        self._stopped = False
        self._streams: list[Stream] = []
        self._threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "hash")

    def begin(self) -> Stream:
        """Begin a file. Files are hashed in the order in which they begin."""
        stream = Stream()
        self._streams.append(stream)
        stream.future = self._threads.submit(self._hash, stream)
        return stream

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds`, and return whether all files are hashed."""
        return not wait([stream.future for stream in self._streams], timeout=seconds).not_done

    def close(self) -> None:
        """Stop, drop the references to memory, and end the threads: within milliseconds."""
        self._stopped = True
        for stream in self._streams:
            stream.end()
        self._threads.shutdown(cancel_futures=True)
        self._streams.clear()

    def _hash(self, stream: Stream) -> str:
        state = hashlib.sha256()
        while (piece := stream.next()) is not None:
            for start in range(0, piece.nbytes, _PIECE):
                if self._stopped:
                    return ""
                began = time.thread_time()
                state.update(piece[start : start + _PIECE])
                self._rest(time.thread_time() - began)
        return state.hexdigest()


class Stream:
    """The bytes of a file, on their way from the thread that reads them to the thread that hashes them."""

    def __init__(self) -> None:
        self._pieces: SimpleQueue[memoryview | None] = SimpleQueue()
        self.future: Future[str] = Future()

    def put(self, piece: memoryview) -> None:
        """Add the next bytes. They must not change any more."""
        self._pieces.put(piece)

    def end(self) -> None:
        """Say that there are no more bytes."""
        self._pieces.put(None)

    def next(self) -> memoryview | None:
        """Return the next bytes, waiting for them; None at the end."""
        return self._pieces.get()

    @property
    def digest(self) -> str:
        """The digest, in hexadecimal. Waits until the file is hashed."""
        return self.future.result()
