"""Failures: each reason of the daemon has a status, its field the API's name, and its time to retry a header."""

from __future__ import annotations

import json

import pytest

from daemon.http.errors import STATUSES, problem, retry_headers
from daemon.http.openai.errors import NAMES, shape
from daemon.shared.errors import Reason
from mlx_sidecar import (
    Cancelled,
    ConnectionLost,
    ContextLengthExceeded,
    DaemonNotRunning,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolError,
    QueueFull,
    UntrustedSocket,
)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_status(reason: Reason) -> None:
    """A new one is not to become a bad gateway."""
    assert 400 <= STATUSES[reason] <= 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFull("full", retry_after=1.2), 429),
        (DaemonNotRunning("none"), 503),
        (ConnectionLost("lost"), 503),
        (UntrustedSocket("another's"), 503),
        (DeadlineExceeded("late"), 504),
        (Cancelled("over"), 503),
        (ProtocolError("what?"), 502),
        (ContextLengthExceeded("long"), 400),
    ],
)
def test_errors_of_the_client_have_a_status(error: Exception, status: int) -> None:
    """Also those that no daemon sent."""
    found = problem(error)
    assert found is not None
    assert found.status == status


def test_bugs_are_no_problems() -> None:
    """They are logged and answered without their text."""
    assert problem(ValueError("secret")) is None


def test_refused_field_has_the_name_of_the_api() -> None:
    """In the text as well."""
    for field, name in (
        ("sampling.top_p", "top_p"),
        ("chat.messages[3].role", "messages[3].role"),
        ("stop.strings[0]", "stop[0]"),
    ):
        found = problem(InvalidArgument(f"{field} is wrong", field=field), NAMES)
        assert found is not None
        assert (found.field, found.message) == (name, f"{name} is wrong")


def test_request_that_is_too_large_is_413() -> None:
    """As one that the door itself refuses."""
    found = problem(InvalidArgument("request has 9 MB", field="request"))
    assert found is not None
    assert found.status == 413


def test_retry_is_told_in_seconds_and_milliseconds() -> None:
    """Whole seconds, rounded up."""
    found = problem(QueueFull("full", retry_after=1.2))
    assert found is not None
    assert retry_headers(found) == {"retry-after": "2", "retry-after-ms": "1200"}
    none = problem(InvalidArgument("no"))
    assert none is not None
    assert retry_headers(none) == {}


def test_openai_shape_has_message_type_param_and_code() -> None:
    """All four, always."""
    found = problem(InvalidArgument("top_p is 2", field="sampling.top_p"), NAMES)
    assert found is not None
    status, body = shape(found)
    expected = {"message": "top_p is 2", "type": "invalid_request_error", "param": "top_p", "code": "invalid_argument"}
    assert (status, json.loads(body)) == (400, {"error": expected})
