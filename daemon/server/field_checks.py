"""Checks that the fields of several requests share: sizes, ranges, names, durations, options of the cache."""

from __future__ import annotations

import math
from collections.abc import Sized

from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""Room for a million token ids (MAX_IDS in `generate_validation.py`), and for more text than any context holds."""

MAX_NAME_BYTES = 1024
MAX_REQUEST_ID = 128
MAX_SALT_BYTES = 128
MAX_KEEP_SECONDS = 24 * 3600
MAX_DURATION_SECONDS = 315_576_000_000
"""Ten thousand years: the range that google.protobuf.Duration states for itself."""


def check_cache(cache: pb.CacheOptions) -> None:
    check_choice("cache.mode", cache.mode, pb.CacheMode)
    check_length("cache.salt", cache.salt, MAX_SALT_BYTES)
    _check_keep(cache)


def check_whole(request: Message) -> None:
    size = request.ByteSize()
    if size > MAX_REQUEST_BYTES:
        raise invalid("request", f"has {size} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    request.DiscardUnknownFields()  # in place, without a copy: a request with unknown fields is refused anyway
    if request.ByteSize() != size:
        raise invalid("request", "has fields that this daemon does not know; update the daemon, or leave them unset")


def check_duration(field: str, value: Duration) -> None:
    """Refuse a negative or invalid Duration. An invalid Duration could not be converted later."""
    if not (0 <= value.seconds <= MAX_DURATION_SECONDS and 0 <= value.nanos < 1_000_000_000):
        raise invalid(field, "must be zero or more, and at most 10,000 years")


def check_name(field: str, name: str) -> None:
    if not name:
        raise invalid(field, "is missing; give a Hub id (org/name), an absolute directory, or 'embedded'")
    check_length(field, name, MAX_NAME_BYTES)


def check_length(field: str, text: str, most: int) -> None:
    size = len(text.encode())
    if size > most:
        raise invalid(field, f"has {size} bytes; at most {most} are allowed")


def check_range(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also false for NaN
        lower = "above 0" if least == math.ulp(0.0) else f"{least}"
        raise invalid(field, f"is {value:g}; it must be {lower} to {most}")


def check_choice(field: str, value: int, kind: EnumTypeWrapper) -> None:
    """Refuse a number that is no value of an enum; the error lists those that can be sent."""
    if value not in kind.values():
        named = [f"{name} ({number})" for name, number in kind.items() if number]
        raise invalid(field, f"is {value}; it must be {', '.join(named[:-1])} or {named[-1]}, or unset")


def check_count(field: str, values: Sized, most: int) -> None:
    if len(values) > most:
        raise invalid(field, f"has {len(values)} entries; at most {most} are allowed")


def _check_keep(cache: pb.CacheOptions) -> None:
    if not cache.HasField("keep"):
        return
    check_duration("cache.keep", cache.keep)
    if not 0 < cache.keep.ToNanoseconds() <= MAX_KEEP_SECONDS * 1_000_000_000:
        raise invalid("cache.keep", "must be above 0, and at most 24 hours")
    if cache.mode in (pb.CACHE_MODE_READ_ONLY, pb.CACHE_MODE_BYPASS):
        mode = pb.CacheMode.Name(cache.mode).removeprefix("CACHE_MODE_")
        raise invalid("cache.keep", f"cannot go with cache.mode {mode}, which stores nothing to keep")


def check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID or not all(" " < character <= "~" for character in request_id):
        raise invalid("request_id", f"must be at most {MAX_REQUEST_ID} printable ASCII characters without spaces")
