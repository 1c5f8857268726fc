"""Work off the MLX thread: tokenising, templates, file checks and downloads. Results come back to the MLX thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import structlog

from daemon.errors import Reason, SidecarError

log = structlog.get_logger()

T = TypeVar("T")


class Background:
    """
    Two small pools: one for short work, one for downloads, so that a download never delays a prompt.

    Args:
        post: Runs a function on the MLX thread; any thread may call it.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._short = ThreadPoolExecutor(2, "prepare")
        self._long = ThreadPoolExecutor(4, "download")

    def run(
        self,
        work: Callable[[], T],
        then: Callable[[T], None],
        failed: Callable[[SidecarError], None],
        *,
        slow: bool = False,
    ) -> None:
        """Run `work` in a pool, then `then` with its result or `failed` with its error on the MLX thread."""

        def deliver(future: Future[T]) -> None:
            error = future.exception()
            if error is None:
                self._post(lambda: then(future.result()))
            else:
                self._post(lambda: failed(as_sidecar_error(error)))

        (self._long if slow else self._short).submit(work).add_done_callback(deliver)

    def close(self) -> None:
        """Drop what has not begun; what runs is left to end with the process."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)


def as_sidecar_error(error: BaseException) -> SidecarError:
    """Return an error as the caller may see it. The text of an unexpected one stays in the log."""
    if isinstance(error, SidecarError):
        return error
    log.error("unexpected error", exc_info=error)
    return SidecarError(Reason.INTERNAL, f"an unexpected {type(error).__name__} occurred; the daemon's log has more")
