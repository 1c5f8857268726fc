"""Frames between parent and engine: a 4-byte big-endian length, then a protobuf message."""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Longest frame. A longer length means that the stream is broken: requests are bounded to far less before."""

_HEADER = struct.Struct(">I")

T = TypeVar("T", bound=Message)


class FrameError(Exception):
    """The other end sent bytes that are no frame. The connection cannot be used any more."""


def encode_frame(message: Message) -> bytes:
    """Return a message as a frame."""
    body = message.SerializeToString()
    return _HEADER.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, kind: type[T]) -> T | None:
    """
    Read a message. Return None at the end of the stream, also within a frame.

    Raises:
        FrameError: If the length is above MAX_FRAME_BYTES, or the body is no such message.
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
