"""Frames between parent and engine: a 4-byte big-endian length, then one protobuf message. Both ends use this file."""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Larger frames are no mistake of a client: requests are bounded long before."""

_HEADER = struct.Struct(">I")

T = TypeVar("T", bound=Message)


class FrameError(Exception):
    """The other end sent something that is no frame; the connection cannot be used any more."""


def encode_frame(message: Message) -> bytes:
    """Return a message as a frame."""
    body = message.SerializeToString()
    return _HEADER.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, kind: type[T]) -> T | None:
    """
    Read one message; None at the end of the stream, a torn frame included.

    Raises:
        FrameError: If the length is out of range or the body is no such message.
    """
    try:
        (length,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes was announced; {MAX_FRAME_BYTES} is the most")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise FrameError(f"a frame holds no {kind.DESCRIPTOR.name}") from error
