"""SHA-256 of files while another thread reads them: what is hashed is the very memory that they were read into."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from daemon.cache.callbacks import Rest, ignore

_PIECE = 1 << 20
_THREADS = 4


class Hashing:
    """
    Hashes some files at a time, each on a thread of its own. Close it; until then it may keep the memory in use.

    Args:
        rest: Called after each mebibyte with the processor seconds that it took; sleeps for as long as others need.
    """

    def __init__(self, rest: Rest = ignore) -> None:
        self._rest = rest
        self._stopped = False
        self._streams: list[Stream] = []
        self._threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "hash")

    def begin(self) -> Stream:
        """Begin a file. They are hashed in the order in which they begin."""
        stream = Stream()
        self._streams.append(stream)
        stream.future = self._threads.submit(self._hash, stream)
        return stream

    def wait(self, seconds: float) -> bool:
        """Wait for at most so long, and tell whether all files are done."""
        return not wait([stream.future for stream in self._streams], timeout=seconds).not_done

    def close(self) -> None:
        """Stop, let go of the memory, and end the threads: within milliseconds."""
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
    """One file. The thread that reads it tells of its bytes in order, and then of its end."""

    def __init__(self) -> None:
        self._pieces: SimpleQueue[memoryview | None] = SimpleQueue()
        self.future: Future[str] = Future()

    def put(self, piece: memoryview) -> None:
        """Take the next bytes, which nothing may change any more."""
        self._pieces.put(piece)

    def end(self) -> None:
        """There are no more."""
        self._pieces.put(None)

    def next(self) -> memoryview | None:
        """Return the next bytes, waiting for them; None at the end."""
        return self._pieces.get()

    @property
    def digest(self) -> str:
        """The digest, in hexadecimal, once all files are done."""
        return self.future.result()
