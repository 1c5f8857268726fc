"""
Requests as they arrive: bytes that are measured before anything is built from them.

Eight megabytes can hold four million empty messages. Building them takes the event loop, which everybody shares, most
of a second; seeing that there are too many takes a hundredth of that, and is done in steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from daemon.server.validation import MAX_REQUEST_BYTES
from daemon.shared.errors import invalid

MAX_FIELDS = 32_768
"""Room for the 10,000 messages that a chat may have, or for a million token ids."""
STEP_FIELDS = 2_048
"""Are counted without a pause: a few milliseconds on a slow machine."""
PACKED_BYTES = 128
"""Of a list of numbers count as one field."""

Descriptor = Any
"""Of a message; protobuf has two unrelated classes of them."""

_NUMBERS = object()

T = TypeVar("T", bound=Message)


async def parse(data: bytes, kind: type[T], most_bytes: int = MAX_REQUEST_BYTES) -> T:
    """
    Return a request from its bytes; between the steps that a large one takes others get their turns of the loop.

    Raises:
        SidecarError: INVALID_ARGUMENT if it is too large, has too many parts, or is no such message.
    """
    if len(data) > most_bytes:
        raise invalid("request", f"has {len(data)} bytes; at most {most_bytes} are allowed")
    for fields in counted(data, kind.DESCRIPTOR):
        if fields > MAX_FIELDS:
            raise invalid("request", f"has more than {MAX_FIELDS} parts, all within its messages and lists included")
        await asyncio.sleep(0)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise invalid("request", f"is no {kind.DESCRIPTOR.full_name}; it cannot be decoded") from error


def counted(data: bytes, descriptor: Descriptor) -> Iterator[int]:
    """
    Yield the number of fields of an encoded message: so far after each STEP_FIELDS of them, and in all at the end.

    Each element of a list and each field within counts, and PACKED_BYTES of numbers as one field. Where the bytes are
    no message, what comes before is counted.
    """
    fields, pause, at = 0, STEP_FIELDS, 0
    within = [(len(data), descriptor)]
    try:
        while within:
            if at >= within[-1][0]:
                at = within.pop()[0]
                continue
            at, numbers = _field(data, at, within)
            fields += 1 + numbers // PACKED_BYTES
            if fields >= pause:
                yield fields
                pause = fields + STEP_FIELDS
    except IndexError:
        pass  # it ends in the middle of a number
    yield fields


def _field(data: bytes, at: int, within: list[tuple[int, Descriptor]]) -> tuple[int, int]:
    """
    Go to the next field and return where it is, and how many bytes of numbers were passed.

    `within` has the end and the kind of each message that the place is in; a message that begins here is added.
    """
    end, descriptor = within[-1]
    tag, at = _varint(data, at)
    kind = tag & 7
    if kind == 2:
        size, at = _varint(data, at)
        inner = _within(descriptor).get(tag >> 3)
        if inner is _NUMBERS:
            return at + size, size
        if inner is not None:
            within.append((min(at + size, end), inner))
            return at, 0
        return at + size, 0
    if kind == 0:
        return _varint(data, at)[1], 0
    return at + (0, 8, 0, 0, 0, 4, 0, 0)[kind], 0


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
