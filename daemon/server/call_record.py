"""The record of a call that has ended, as the log and the tracer get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CallRecord:
    """
    One call.

    Attributes:
        method: Full name of its RPC, as in "/package.Service/Method".
        code: Name of its gRPC code.
        duration: Seconds from its arrival to its end.
        headers: Metadata of the request, only the texts.
        fields: The other fields of its log line.
    """

    method: str
    code: str
    duration: float
    headers: Mapping[str, str]
    fields: Mapping[str, Any]
