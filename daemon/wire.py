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
"""Room for the 10,000 messages that a chat may have. A list of token ids is one field, however long."""

Descriptor = Any
"""Of a message; protobuf has two unrelated classes of them."""

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
        raise invalid("request", f"has more than {MAX_FIELDS} fields, those of its messages and lists included")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise invalid("request", f"is no {kind.DESCRIPTOR.full_name}; it cannot be decoded") from error


def has_more_fields(data: bytes, descriptor: Descriptor, most: int) -> bool:
    """
    Whether an encoded message has more fields than `most`, each element of a list and each field within counted.

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
    within = _messages(descriptor)
    while at < end and most >= 0:
        most -= 1
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(data, at)
            if size and (inner := within.get(tag >> 3)) is not None:
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
def _messages(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return the fields of a message that are messages themselves, by number."""
    fields = descriptor.fields
    return {field.number: field.message_type for field in fields if field.type == FieldDescriptor.TYPE_MESSAGE}
