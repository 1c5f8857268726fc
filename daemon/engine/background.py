"""Work off the MLX thread: tokenising, templates, file checks and downloads. Results come back to the MLX thread."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import structlog

from daemon.errors import Reason, SidecarError

log = structlog.get_logger()

T = TypeVar("T")


class Background:
    """
    Two small pools: one for short work, one for downloads and for reading weights, so that neither delays a prompt.

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
        """
        Run `work` in a pool, then `then` with its result on the MLX thread; or `failed` with the error of either, so
        that nothing but this call suffers from it.
        """

        def finish(future: Future[T]) -> None:
            try:
                then(future.result())
            except Exception as error:
                failed(as_sidecar_error(error))

        def deliver(future: Future[T]) -> None:
            if not future.cancelled():
                self._post(lambda: finish(future))

        (self._long if slow else self._short).submit(work).add_done_callback(deliver)

    def close(self) -> None:
        """Drop what has not begun; what runs is left to end with the process."""
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)


def as_sidecar_error(error: BaseException) -> SidecarError:
    """Return an error as the caller may see it. Where an unexpected one came from stays in the log."""
    if isinstance(error, SidecarError):
        return error
    error_id = secrets.token_hex(6)
    log.error("unexpected error", error_id=error_id, exc_info=error)
    kind = type(error).__name__
    return SidecarError(
        Reason.INTERNAL,
        f"an unexpected {kind} occurred; the daemon's log has it under id {error_id}",
        metadata={"error_id": error_id, "type": kind},
    )
