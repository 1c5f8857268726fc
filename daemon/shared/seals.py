"""
Sealed frames: a 4-byte length, a protobuf message, and a seal that proves its sender and its place in the stream.

    | length, 4 bytes, big-endian | message | HMAC-SHA256 over the frame's number and the message, 16 bytes |

Each direction of a connection has a key of its own, and frames are numbered from zero. So a frame that was changed,
left out, repeated or sent back does not pass. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from daemon.shared.frames import MAX_FRAME_BYTES, FrameError

SEAL_BYTES = 16

_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")


class Seal:
    """
    Seals frames of one direction, or opens them.

    Args:
        key: The key of the direction.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def frame(self, body: bytes) -> bytes:
        """Return the next message as a frame."""
        return _LENGTH.pack(len(body)) + body + self._next(body)

    def check(self, body: bytes, seal: bytes) -> None:
        """
        Check the seal of the next message.

        Raises:
            FrameError: If it is not that of this message at this place.
        """
        if not hmac.compare_digest(self._next(body), seal):
            raise FrameError("a frame has a wrong seal")

    def _next(self, body: bytes) -> bytes:
        number, self._number = _NUMBER.pack(self._number), self._number + 1
        return hmac.digest(self._key, number + body, "sha256")[:SEAL_BYTES]


class Opener:
    """
    Takes bytes as they arrive, and returns the messages of whole frames.

    Args:
        key: The key of the direction.
    """

    def __init__(self, key: bytes) -> None:
        self._seal = Seal(key)
        self._pending = bytearray()

    def add(self, data: bytes) -> list[bytes]:
        """
        Return the messages that are complete now.

        Raises:
            FrameError: If a length is above the limit, or a seal is wrong.
        """
        self._pending += data
        bodies: list[bytes] = []
        start = 0
        while len(self._pending) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending, start)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes was announced; {MAX_FRAME_BYTES} is the most")
            begin = start + _LENGTH.size
            end = begin + length
            if len(self._pending) < end + SEAL_BYTES:
                break
            body = bytes(self._pending[begin:end])
            self._seal.check(body, bytes(self._pending[end : end + SEAL_BYTES]))
            bodies.append(body)
            start = end + SEAL_BYTES
        del self._pending[:start]
        return bodies


def session_keys(key: bytes, transcript: bytes) -> tuple[bytes, bytes]:
    """
    Return the keys of a session's two directions.

    Args:
        key: The shared key.
        transcript: All frames of the handshake, which hold random bytes of both sides.

    Returns:
        The key of frames to the first rank, and that of frames from it.
    """
    digest = hashlib.sha256(transcript).digest()
    return hmac.digest(key, b"up" + digest, "sha256"), hmac.digest(key, b"down" + digest, "sha256")
