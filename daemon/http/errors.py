"""
Failures of HTTP requests: a status, a text and what to retry, before an API gives them its own shape.

A failure has one form in the door, `Problem`, whatever refused the request: the door, a wrong type in the body, or the
daemon. Each API turns it into the body that its SDKs parse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pydantic import ValidationError
from starlette.responses import Response

from daemon.shared.wording import did_you_mean
from mlx_sidecar import ConnectionLost, DaemonNotRunning, InvalidArgument, SidecarError, UntrustedSocket

STATUSES: Mapping[str, int] = {
    "MODEL_NOT_FOUND": 404,
    "MODEL_NOT_CACHED": 404,
    "MODEL_GATED": 403,
    "MODEL_UNSUPPORTED": 422,
    "MODEL_CORRUPT": 422,
    "MODEL_EXCEEDS_BUDGET": 422,
    "MODEL_QUARANTINED": 422,
    "REQUEST_QUARANTINED": 422,
    "REQUEST_EXCEEDS_MEMORY": 422,
    "BUDGET_IN_USE": 429,
    "INVALID_ARGUMENT": 400,
    "CONTEXT_LENGTH_EXCEEDED": 400,
    "QUEUE_FULL": 429,
    "SLOW_CONSUMER": 408,
    "SLOW_SENDER": 408,
    "SHUTTING_DOWN": 503,
    "ENGINE_RESTARTED": 503,
    "MODEL_NOT_RESPONDING": 503,
    "MACHINE_EXHAUSTED": 503,
    "MACHINE_FAULT": 500,
    "NAN_LOGITS": 500,
    "INTERNAL": 500,
}
"""The status of each reason of the daemon. SDKs repeat requests after 408, 409, 429 and statuses from 500 on."""

CODES: Mapping[str, int] = {"DEADLINE_EXCEEDED": 504, "CANCELLED": 503, "UNAVAILABLE": 503}
"""The status of errors without a reason, by gRPC code."""
OTHER = 502
"""The status of other errors without a reason."""

WHOLE_REQUEST = "request"
"""The field that the daemon names if a request is too large as a whole."""
RETRY_SECONDS = 1.0
"""Time to retry while no daemon answers."""
_LONGEST_NAME = 64
"""Characters of a parameter's name in errors: no known one is longer."""
_INDEX = re.compile(r"\[[^]]*\]")
_DOTTED = r"(?:sampling|chat)\.\w+"
"""Pattern of fields that have no prefix in any API."""


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """
    A request that is refused or failed.

    Args:
        status: HTTP status.
        message: What is wrong and what to do.
        code: Stable name in lower case, such as "model_not_found".
        field: Parameter that is wrong, such as "messages[0].content"; None if none is.
        retry_after: Seconds after which a retry is useful; None if it is not, or unknown.
        request_id: Name of the request in the daemon's log; None if it has none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        field: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.field = field
        self.retry_after = retry_after
        self.request_id = request_id


class ClientGone(Exception):  # noqa: N818 - a state, and no fault of the program
    """The client has closed its connection; no answer reaches it."""


def invalid(field: str, message: str) -> Problem:
    """Return the problem of a parameter that is wrong; `message` goes on after the parameter's name."""
    return Problem(400, f"{field} {message}", code="invalid_value", field=field)


def page_limit(text: str, most: int) -> int:
    """
    Return the parameter `limit` of a list's page.

    Args:
        text: As the client wrote it.
        most: The largest page.

    Raises:
        Problem: If it is no number from 1 to `most`.
    """
    if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= most:  # Python reads no number of thousands of digits
        return int(text)
    raise invalid("limit", f"must be a number from 1 to {most}")


def problem(error: Exception, names: Mapping[str, str] | None = None) -> Problem | None:
    """
    Return the problem that an error is; None for a bug.

    Args:
        error: What a handler raised.
        names: The API's parameter for each field of the gRPC API that has another name there, and its value for each
            value in capitals. A field within lists has `[]` for each index, as "chat.tools[].name".
    """
    match error:
        case Problem():
            return error
        case ValidationError():
            return _wrong_type(error)
        case SidecarError():
            return _refused(error, names or {})
    return None


def retry_headers(found: Problem) -> dict[str, str]:
    """Return the headers that tell when to retry: in whole seconds for all, in milliseconds for SDKs that read it."""
    if found.retry_after is None:
        return {}
    wait = max(0.0, found.retry_after)
    return {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}


def error_response(status: int, body: bytes, found: Problem) -> Response:
    """Return the response with a shaped body."""
    # SDKs read the request's id under one of two names.
    named = {} if found.request_id is None else dict.fromkeys(("x-request-id", "request-id"), found.request_id)
    return Response(body, status, headers=retry_headers(found) | named, media_type="application/json")


def _wrong_type(error: ValidationError) -> Problem:
    first = error.errors(include_url=False)[0]
    # A step in angle brackets tells which type of several an object was read as.
    field = path(tuple(step for step in first["loc"] if not str(step).startswith("<")))
    # Text of pydantic's own: our validators raise `Problem`. It has types, limits and values, and no part of the body.
    text = first["msg"].removeprefix("Value error, ").replace(" after validation", "")
    text = text[:1].lower() + text[1:]
    if first["type"] == "json_invalid":
        where = first["msg"].removeprefix("Invalid JSON: ")  # the kind, line and column, and no part of the body
        return Problem(400, f"the body is not valid JSON: {where}", code="invalid_json")
    if first["loc"][-1:] == ("type",) and isinstance(first["loc"][-2:][0], int) and "'text'" in text:
        text += "; models read text, and no images, audio or files"  # a part of a message that is none
    elif first["type"] == "literal_error" and isinstance(first["input"], str):
        near = did_you_mean(first["input"], re.findall(r"'(.*?)'", first["ctx"]["expected"]))
        text += f"; {near}" if near else ""
    return Problem(400, f"{field or 'the body'}: {text}", code=_code(first["type"]), field=field or None)


def _code(kind: str) -> str:
    """Return the code of an error of pydantic's, such as "int_type" or "greater_than_equal"."""
    if kind == "missing":
        return "missing_required_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def path(steps: tuple[int | str, ...]) -> str:
    """
    Return the path of a parameter, such as "messages[0].content".

    A name of the caller's own may have any length, so no more than its beginning is in the path.
    """
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if len(step) <= _LONGEST_NAME else f"{step[:_LONGEST_NAME]}…"
            text += f".{name}" if text else name
    return text


def _refused(error: SidecarError, names: Mapping[str, str]) -> Problem:
    status = STATUSES.get(error.reason) or CODES.get(error.code, OTHER)
    retry = error.retry_after
    if retry is None and isinstance(error, DaemonNotRunning | ConnectionLost):
        retry = RETRY_SECONDS
    if isinstance(error, UntrustedSocket):
        status = 503
    message, field = str(error), error.field
    if field == WHOLE_REQUEST:
        return Problem(413, message, code="request_too_large")
    if isinstance(error, InvalidArgument) and field is not None:
        message, field = _renamed(message, field, names)
    if error.error_id:
        message += f" (error id {error.error_id})"
    code = (error.reason or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__)).lower()
    return Problem(
        status, message, code=code, field=field, retry_after=retry, request_id=error.metadata.get("request_id")
    )


def _renamed(message: str, field: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Return text and field of an error with the API's own names for fields and values of the gRPC API."""
    name = _own_name(field, names)
    named = [one for one in names if one.isupper() or not (one.isalpha() or "[" in one)]
    others = map(re.escape, sorted(named, key=len, reverse=True))
    words = rf"{_mention(field)}|(?<![\w.])(?:{'|'.join([*others, _DOTTED])})(?!\w)"
    return re.sub(words, lambda seen: name if seen[0] == field else _own_name(seen[0], names), message), name


def renamed(message: str, field: str, name: str) -> str:
    """Return the text of an error with another name for the field that it is about."""
    return re.sub(_mention(field), lambda _: name, message)


def _mention(field: str) -> str:
    """Return the pattern of a field in a text. A field such as "text" is a word as well: only the first one counts."""
    before = "^" if field.isalpha() else r"(?<![\w.])"
    return rf"{before}{re.escape(field)}(?!\w)"


def _own_name(field: str, names: Mapping[str, str]) -> str:
    head, bracket, rest = field.partition("[")
    if (inner := names.get(_INDEX.sub("[]", field))) and bracket:
        indexes = iter(_INDEX.findall(field))
        return re.sub(r"\[\]", lambda _: next(indexes), inner)
    return names.get(head, head.removeprefix("sampling.").removeprefix("chat.")) + bracket + rest
