"""A call that has ended, as logs and traces tell of it."""

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
        duration: Seconds that it took.
        headers: Metadata that came with it, texts only.
        fields: What its log line tells besides.
    """

    method: str
    code: str
    duration: float
    headers: Mapping[str, str]
    fields: Mapping[str, Any]
