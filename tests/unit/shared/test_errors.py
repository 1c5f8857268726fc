"""The error table: every reason has a code, and the client knows the same reasons with the same codes."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2

from daemon.shared.errors import CODES, Reason, SidecarError, invalid
from mlx_sidecar._exceptions import REASONS


def test_every_error_reason_has_a_status_code() -> None:
    """An error, and one that gRPC knows."""
    assert set(CODES) == set(Reason)
    assert all(code_pb2.Code.Name(code) != "OK" for code in CODES.values())


def test_error_reason_name_equals_its_value() -> None:
    """The name is part of the API."""
    assert all(reason.name == reason.value for reason in Reason)


def test_client_errors_mirror_the_table() -> None:
    """Reason by reason and code by code."""
    assert set(REASONS) == {reason.value for reason in Reason}
    for reason in Reason:
        assert REASONS[reason].code == code_pb2.Code.Name(CODES[reason])


def test_retryable_errors_are_unavailable_or_exhausted() -> None:
    """Callers retry by code."""
    passing = {code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED}
    assert {reason for reason in Reason if CODES[reason] in passing} == {
        Reason.BUDGET_IN_USE,
        Reason.QUEUE_FULL,
        Reason.SLOW_CONSUMER,
        Reason.SLOW_SENDER,
        Reason.SHUTTING_DOWN,
        Reason.ENGINE_RESTARTED,
        Reason.MACHINE_EXHAUSTED,
    }


def test_invalid_field_error_names_its_field() -> None:
    """In the message and beside it."""
    error = invalid("sampling.top_p", "is 2; it must be above 0 to 1")
    assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "sampling.top_p")
    assert error.message == "sampling.top_p is 2; it must be above 0 to 1"
    assert error.code == code_pb2.INVALID_ARGUMENT


def test_error_metadata_is_a_copy() -> None:
    """Later changes of the caller's mapping do not change the error."""
    figures = {"needed_bytes": "1"}
    error = SidecarError(Reason.REQUEST_EXCEEDS_MEMORY, "too much", metadata=figures)
    figures.clear()
    assert error.metadata == {"needed_bytes": "1"}
    with pytest.raises(SidecarError):
        raise error
