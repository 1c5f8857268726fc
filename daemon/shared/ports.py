"""Ports of this machine on which other programs answer, and which a system may let this process take all the same."""

from __future__ import annotations

import errno
import os
import socket

_ANSWER_SECONDS = 0.25
"""On its own addresses a machine answers at once, unless the queue of the program that listens is full."""


def refuse_taken(address: str, port: int) -> None:
    """
    Refuse a port on which a program answers. Call it before an address of this machine is bound.

    A program can listen on all addresses. With SO_REUSEADDR macOS then lets another one have a single address of that
    port, and the first program gets no connection to it any more. Without that option a daemon could not have its own
    port again for a while after its end. An address of another machine is not called: the system refuses to bind it.

    Args:
        address: The address that is about to be bound.
        port: The port. 0 stands for one that is free.

    Raises:
        OSError: EADDRINUSE if a program answers there.
    """
    if port and _answers(address, port):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _answers(address: str, port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(_ANSWER_SECONDS)
        try:
            caller.bind((address, 0))  # not to call another machine, which may not answer
            caller.connect((address, port))
        except TimeoutError:
            return True  # its queue is full
        except OSError:
            return False
        # The system may have given the caller this very port, and then it is connected with itself.
        return bool(caller.getsockname() != caller.getpeername())
