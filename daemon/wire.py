"""
Requests as they arrive: bytes that are measured before anything is built from them.

Eight megabytes can hold four million empty messages. Building them takes the event loop, which everybody shares, most
of a second; seeing that there are too many takes a hundredth of that.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from daemon.errors import invalid
from daemon.validation import MAX_REQUEST_BYTES

MAX_FIELDS = 32_768
"""Room for the 10,000 messages that a chat may have, or for a million token ids."""
PACKED_BYTES = 128
"""Of a list of numbers count as one field."""

Descriptor = Any
"""Of a message; protobuf has two unrelated classes of them."""

_NUMBERS = object()

T = TypeVar("T", bound=Message)


def parse(data: bytes, kind: type[T]) -> T:
    """
    Return a request from its bytes.

    Raises:
        SidecarError: INVALID_ARGUMENT if it is too large, has too many parts, or is no such message.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise invalid("request", f"has {len(data)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    if has_more_fields(data, kind.DESCRIPTOR, MAX_FIELDS):
        raise invalid("request", f"has more than {MAX_FIELDS} parts, all within its messages and lists included")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise invalid("request", f"is no {kind.DESCRIPTOR.full_name}; it cannot be decoded") from error


def has_more_fields(data: bytes, descriptor: Descriptor, most: int) -> bool:
    """
    Whether an encoded message has more fields than `most`, each element of a list and each field within counted, and
    PACKED_BYTES of numbers as one.

    Where the bytes are no message, what comes before is counted.
    """
    spans = [(0, len(data), descriptor)]
    try:
        while spans and most >= 0:
            most = _walk(data, spans, most)
    except IndexError:
        return False  # it ends in the middle of a number
    return most < 0


def _walk(data: bytes, spans: list[tuple[int, int, Descriptor]], most: int) -> int:
    """Go through one message, leave those within for later, and return how many more fields there may be."""
    at, end, descriptor = spans.pop()
    within = _within(descriptor)
    while at < end and most >= 0:
        most -= 1
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(data, at)
            inner = within.get(tag >> 3)
            if inner is _NUMBERS:
                most -= size // PACKED_BYTES
            elif inner is not None and size:
                spans.append((at, min(at + size, end), inner))
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        else:
            at += (0, 8, 0, 0, 0, 4, 0, 0)[kind]
    return most


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    shift = 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:
            return value, at + 1
        shift += 7


@cache
def _within(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return the fields of a message that are messages themselves, or lists of numbers, by number."""
    found: dict[int, Descriptor] = {}
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            found[field.number] = field.message_type
        elif field.is_packed:
            found[field.number] = _NUMBERS
    return found
