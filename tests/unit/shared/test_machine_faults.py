"""Faults of the machine are told from faults of a model, for the error texts of each library."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import DeviceFailedError, machine_fault

EXHAUSTED = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN]
FAULTY = [errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO, errno.ESTALE, errno.EDEADLK]


def _of(error: BaseException) -> tuple[str, bool] | None:
    """Return the reason and whether a retry may help; None if the machine is not at fault."""
    fault = machine_fault(error, "it cannot be loaded")
    if fault is None:
        return None
    assert fault.message.startswith("it cannot be loaded: ")
    assert "; " in fault.message, "a cure is told"
    return fault.reason, fault.retry_after is not None


ONE_BUFFER = (
    "[metal::malloc] Attempting to allocate 23622320128 bytes which is greater than the maximum allowed buffer size of "
    "22613000192 bytes."
)


@pytest.mark.parametrize("number", EXHAUSTED, ids=os.strerror)
def test_exhausted_resources_are_worth_a_retry(number: int) -> None:
    assert _of(OSError(number, os.strerror(number))) == ("MACHINE_EXHAUSTED", True)


@pytest.mark.parametrize("number", FAULTY, ids=os.strerror)
def test_permanent_machine_faults_are_not_retryable(number: int) -> None:
    assert _of(OSError(number, os.strerror(number))) == ("MACHINE_FAULT", False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MACHINE_EXHAUSTED"),
        (MemoryError("std::bad_alloc"), "MACHINE_EXHAUSTED"),
        (RuntimeError("[metal::malloc] Unable to allocate 99 bytes."), "MACHINE_EXHAUSTED"),
        (RuntimeError("[metal::malloc] Resource limit (499000) exceeded."), "MACHINE_EXHAUSTED"),
        (RuntimeError(ONE_BUFFER), "MACHINE_FAULT"),
        (RuntimeError("[malloc] Unable to allocate 99 bytes."), "MACHINE_EXHAUSTED"),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), "MACHINE_EXHAUSTED"),
        (Exception("No space left on device (os error 28)"), "MACHINE_EXHAUSTED"),
        (Exception("Input/output error (os error 5)"), "MACHINE_FAULT"),
        (RuntimeError("filesystem error: temp_directory_path: No such file or directory"), "MACHINE_FAULT"),
        (RuntimeError("filesystem error: cannot create directory: No space left on device [/x]"), "MACHINE_EXHAUSTED"),
        (RuntimeError("[Compile::eval_cpu] Failed to compile function f with error code 256."), "MACHINE_FAULT"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']"), "MACHINE_FAULT"),
    ],
    ids=str,
)
def test_library_messages_map_to_machine_faults(error: BaseException, reason: str) -> None:
    found = _of(error)
    assert found is not None
    assert found[0] == reason


def test_array_beyond_one_buffer_of_the_gpu_is_not_worth_a_retry() -> None:
    """No memory that becomes free would help; the limit is told."""
    fault = machine_fault(RuntimeError(ONE_BUFFER), "the prompt")
    assert fault is not None
    assert fault.retry_after is None
    assert "22.6 GB; use a shorter prompt" in str(fault)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Missing 3 parameters"),
        FileNotFoundError(2, "No such file or directory"),
        IsADirectoryError(21, "Is a directory"),
        OSError("Can't load tokenizer for 'x'"),
        RuntimeError("[load_safetensors] Invalid json header length"),
        ValueError("a tensor named malloc, No space left on device"),
        Exception("No such file or directory (os error 2)"),
        SidecarError(Reason.MODEL_CORRUPT, "cut off"),
    ],
    ids=repr,
)
def test_model_faults_are_not_machine_faults(error: BaseException) -> None:
    assert _of(error) is None


def test_cause_of_an_error_decides_its_machine_fault() -> None:
    """Libraries hide it: by `from`, or in the middle of handling it. What is raised `from None` stands alone."""
    cause = OSError(errno.EMFILE, "Too many open files")
    by_from, meanwhile, unrelated = ValueError("one"), ValueError("two"), ValueError("three")
    by_from.__cause__ = cause
    meanwhile.__context__ = by_from
    unrelated.__context__, unrelated.__suppress_context__ = cause, True

    assert _of(by_from) == _of(meanwhile) == ("MACHINE_EXHAUSTED", True)
    assert _of(unrelated) is None


def test_self_caused_error_ends_the_cause_search() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert _of(one) is None


def test_macos_privacy_has_its_own_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a service gets EPERM for files of its own user, on other disks and in Documents: their modes are right."""
    cures = {}
    for platform in ("darwin", "linux"):
        monkeypatch.setattr(sys, "platform", platform)
        for number in (errno.EPERM, errno.EACCES):
            fault = machine_fault(PermissionError(number, os.strerror(number)), "config.json cannot be read")
            assert fault is not None
            cures[platform, number] = fault.message.rpartition("; ")[2]
    assert "Privacy & Security" in cures["darwin", errno.EPERM]
    assert cures["linux", errno.EPERM] == "let the daemon's user do that"
    assert cures["darwin", errno.EACCES] == cures["linux", errno.EACCES] == "let the daemon's user read it"


@pytest.mark.parametrize(
    "why",
    [
        "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
        "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
    ],
)
def test_work_that_a_gpu_dropped_ends_the_engine(why: str) -> None:
    """The call that gets the error need not be the one whose work was dropped; a library may have hidden it."""
    error = RuntimeError(f"[METAL] Command buffer execution failed: {why}")
    hidden = ValueError("no such layer")
    hidden.__cause__ = error
    for raised in (error, hidden):
        with pytest.raises(DeviceFailedError, match="Command buffer execution failed"):
            machine_fault(raised, "it cannot be loaded")
    assert not issubclass(DeviceFailedError, Exception), "a call would take it for its own"
    assert _of(ValueError(f"[METAL] Command buffer execution failed: {why}")) is None, "of a caller's text"
