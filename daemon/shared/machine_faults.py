"""
Tells faults of the machine (no memory, a full disk) from faults of a model.

The cure is another: the same files may load a minute later.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping

from daemon.shared.errors import Reason, SidecarError

EXHAUSTED_RETRY_SECONDS = 5.0
"""Seconds after which memory, disk space or descriptors may be free again."""

_EXHAUSTED: Mapping[int, str] = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close files of other processes",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "end some processes or raise their limit (ulimit -u)",
    errno.ENOBUFS: "free some memory",
}
_FAULTY: Mapping[int, str] = {
    errno.EIO: "check the disk that it is on",
    errno.EACCES: "let the daemon's user read it",
    errno.EPERM: "let the daemon's user do that",
    errno.EROFS: "make the file system writable",
    errno.ENXIO: "check the disk that it is on",
    errno.ENODEV: "check the disk that it is on",
    errno.ESTALE: "mount the file system again",
    errno.ETIMEDOUT: "check the file system that it is on",
    errno.EBUSY: "end what uses it",
    errno.EDEADLK: "download it in Finder, if it is of a cloud drive, and keep models elsewhere",
}
MAC_PRIVACY = "allow its Python in System Settings > Privacy & Security > Files and Folders, or Full Disk Access"
"""macOS keeps services from other disks and from some folders of the user, whatever the modes of the files are."""
_TEXTS: Mapping[int, str] = {number: os.strerror(number) for number in (*_EXHAUSTED, *_FAULTY)}

_NO_MEMORY = re.compile(r"^\[(metal::)?malloc|std::bad_alloc|Unable to allocate|^cuda.* failed: out of memory")
"""What the errors of MLX and CUDA have when memory runs out; the tests have whole texts."""
_ONE_BUFFER = re.compile(r"^\[metal::malloc\] .* greater than the maximum allowed buffer size of (\d+) bytes")
"""MLX's error for an array that one buffer of the GPU cannot hold, however much memory is free."""
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_NO_COMPILER = re.compile(r"^\[Compile::eval_cpu\] Failed to (compile|load)")
_NO_TEMPORARY = re.compile(r"temp_directory_path|No usable temporary directory")
_OF_CPP = "filesystem error: "
_DEVICE_FAILED = "[METAL] Command buffer execution failed"


class DeviceFailedError(BaseException):
    """
    A GPU dropped work that it was given: the engine has to end. No `Exception`, so that no call takes it for its own.

    Metal drops work when memory is short or the display waits, for example, and tells it afterwards. MLX raises that
    once, in whatever call comes next, and evaluations before it may have returned without an error. So arrays of any
    request may hold anything, and stored KV too.
    """


def pass_on_device_failure(error: BaseException) -> None:
    """
    Raise what ends the engine, if that is what an error is about. Called where errors of computations are caught.

    Raises:
        DeviceFailedError: If the error, or one that led to it, is that of a GPU that dropped work.
    """
    for link in _chain(error):
        if isinstance(link, RuntimeError) and str(link).startswith(_DEVICE_FAILED):
            raise DeviceFailedError(str(link)) from error


def machine_fault(error: BaseException, what: str) -> SidecarError | None:
    """
    Return the error for the caller if the machine is at fault; None if it is not.

    The errors that led to an error count as well: libraries hide the system's errors behind their own.

    Args:
        error: The error that was raised.
        what: The step that failed, such as "model.safetensors cannot be read".

    Returns:
        MACHINE_EXHAUSTED, with a time to retry, if something ran out; MACHINE_FAULT if something has to be mended.

    Raises:
        DeviceFailedError: If a GPU dropped work.
    """
    pass_on_device_failure(error)
    for link in _chain(error):
        if isinstance(link, SidecarError):
            return link if link.reason in (Reason.MACHINE_EXHAUSTED, Reason.MACHINE_FAULT) else None
        text = str(link)
        if _NO_TEMPORARY.search(text):
            return _fault(what, "there is no directory for temporary files", "set TMPDIR to one that can be written to")
        if isinstance(link, RuntimeError) and _NO_COMPILER.match(text):
            return _fault(what, "the C++ compiler failed", "check that it works and that TMPDIR has space")
        if isinstance(link, RuntimeError) and (limit := _ONE_BUFFER.match(text)):
            why = f"an array would be larger than a buffer of this GPU may be, {int(limit[1]) / 1e9:.1f} GB"
            return _fault(what, why, "use a shorter prompt, or a model with smaller arrays")
        number = _number(link, text) or 0
        if number in _EXHAUSTED:
            return SidecarError(
                Reason.MACHINE_EXHAUSTED,
                f"{what}: {_TEXTS[number]}; {_EXHAUSTED[number]}, then try again",
                metadata={"errno": errno.errorcode[number]},
                retry_after=EXHAUSTED_RETRY_SECONDS,
            )
        if number in _FAULTY:
            return _fault(what, _TEXTS[number], _cure(number), errno=errno.errorcode[number])
    return None


def _fault(what: str, why: str, cure: str, **metadata: str) -> SidecarError:
    return SidecarError(Reason.MACHINE_FAULT, f"{what}: {why}; {cure}", metadata=metadata)


def _cure(number: int) -> str:
    return MAC_PRIVACY if number == errno.EPERM and sys.platform == "darwin" else _FAULTY[number]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that it was raised from or during, each once."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        link = pending.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            pending += [None if link.__suppress_context__ else link.__context__, link.__cause__]


def _number(error: BaseException, text: str) -> int | None:
    """Return the errno behind an error; None if there is none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return errno.ENOMEM
    if match := _OF_RUST.search(text):
        return int(match[1])
    if isinstance(error, RuntimeError) and text.startswith(_OF_CPP):
        return next((number for number, said in _TEXTS.items() if said in text), None)
    return None
