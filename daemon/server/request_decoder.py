"""
Decodes requests, after a count of their fields that bounds the time of decoding.

Eight megabytes can hold four million empty messages. Building those takes most of a second on the event loop, which all
calls share. Counting takes a hundredth of that, and is done in steps between which other calls get their turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from daemon.server.field_checks import MAX_REQUEST_BYTES
from daemon.shared.errors import invalid

MAX_FIELDS = 32_768
"""Room for the 10,000 messages that a chat may have, or for a million token ids."""
STEP_FIELDS = 2_048
"""Fields that are counted without a pause: a few milliseconds on a slow machine."""
STEP_BYTES = 2 * STEP_FIELDS
"""A request of so many bytes is decoded without a pause: a field has two bytes at least."""
PACKED_BYTES = 128
"""Bytes of a list of numbers that count as one field."""

# The wire types of protobuf, in the low three bits of a tag; see https://protobuf.dev/programming-guides/encoding/.
_TAG_BITS = 3
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED_BYTES = {_I64: 8, _I32: 4}
"""Bytes of a value that follow the tag. The marks of a group (3 and 4) have no value; 6 and 7 are no wire types."""

Descriptor = Any
"""Descriptor of a message; protobuf has two unrelated classes of them."""

_NUMBERS = object()
"""Stands for a packed list of numbers. Its elements need no look."""

T = TypeVar("T")


async def parse(
    data: bytes,
    decode: Callable[[bytes], T],
    descriptor: Descriptor | None = None,
    most_bytes: int = MAX_REQUEST_BYTES,
) -> T:
    """
    Decode a request. Between the stages of a large request other calls get their turns of the event loop.

    Args:
        data: The request, as it arrived.
        decode: Makes a message of bytes; raises DecodeError for bytes that are none.
        descriptor: Descriptor of the message; None if its fields need no count.
        most_bytes: Most bytes that the request may have.

    Raises:
        SidecarError: INVALID_ARGUMENT if it is too large, has too many fields, or is no such message.
    """
    if len(data) > most_bytes:
        raise invalid("request", f"has {len(data)} bytes; at most {most_bytes} are allowed")
    large = len(data) > STEP_BYTES
    for fields in counted(data, descriptor) if large and descriptor is not None else ():
        if fields > MAX_FIELDS:
            raise invalid("request", f"has more than {MAX_FIELDS} parts, all within its messages and lists included")
        await asyncio.sleep(0)
    try:
        request = decode(data)
    except DecodeError:
        raise invalid("request", "is no message of the kind that this RPC takes; it cannot be decoded") from None
    if large:
        await asyncio.sleep(0)
    return request


def counted(data: bytes, descriptor: Descriptor) -> Iterator[int]:
    """
    Count the fields of an encoded message. Yield the count after each STEP_FIELDS fields, and in all at the end.

    Each element of a list counts, each field of an inner message, and each PACKED_BYTES of a list of numbers. Where the
    bytes are no message, the fields before that place are counted.
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
    Pass one field.

    Args:
        data: The whole request.
        at: Where the field begins.
        within: End and descriptor of each message that the place is in, outermost first. A message that begins here is
            added; its fields come next.

    Returns:
        Where the next field begins, and how many bytes of packed numbers were passed.
    """
    end, descriptor = within[-1]
    tag, at = _varint(data, at)
    kind = tag & 7
    if kind == _LEN:
        size, at = _varint(data, at)
        inner = _within(descriptor).get(tag >> _TAG_BITS)
        if inner is _NUMBERS:
            return at + size, size
        if inner is not None:
            within.append((min(at + size, end), inner))
            return at, 0
        return at + size, 0
    if kind == _VARINT:
        return _varint(data, at)[1], 0
    return at + _FIXED_BYTES.get(kind, 0), 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """
    Decode the number at a place, seven bits a byte, lowest first; the highest bit says that another byte follows.

    Returns:
        The number, and the place after it.

    Raises:
        IndexError: If the data ends before the number does.
    """
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    shift = 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:  # no number has more than 64 bits; the decoder will refuse it
            return value, at + 1
        shift += 7


@cache
def _within(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return the descriptors of a message's inner messages, and _NUMBERS for lists of numbers, by field number."""
    inner: dict[int, Descriptor] = {}
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner[field.number] = field.message_type
        elif field.is_packed:
            inner[field.number] = _NUMBERS
    return inner
