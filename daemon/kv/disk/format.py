"""
The format of the disk tier's files. Pure: bytes to values and back.

    magic (with the version) | length of the header | header | SHA-256 of all before | part | part | ...

The header is JSON: what the piece is, and for each part its meaning, its bytes and its checksum. Whatever does not fit
exactly is a `DamagedError`. The index repeats the headers' facts, so that a start need not open every file.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from daemon.kv.disk.piece import HASH_BYTES, Part, Piece
from daemon.shared import liveness

MAGIC = b"mlx-sidecar kv 1\n"
TAIL_MAGIC = b"mlx-sidecar kv 2\n"
"""Begins a file with a tail: a version that knows none takes the file for damaged, and not for another resume piece."""
INDEX_MAGIC = b"mlx-sidecar kv index 1\n"
_LENGTH = struct.Struct("<I")
_DIGEST = hashlib.sha256().digest_size
MOST_HEADER = 64 << 20
"""Bytes of the longest header that is read; longer ones are damaged."""

HEAD_BYTES = 1024
NAME_BYTES = 6
PART_HEAD_BYTES = 512
HASH_TEXT_BYTES = 128
"""
Most bytes of a header: of its fixed facts, and for each character of the model's name, each part and each block. The
writer tells the true size.
"""


class DamagedError(ValueError):
    """A file is not what it should be: torn, changed, or of another format."""


@dataclass(frozen=True, slots=True)
class Header:
    """
    The beginning of a file.

    Attributes:
        piece: What lies in it.
        parts: For each part its meaning, bytes and checksum.
        length: Bytes before the first part.
    """

    piece: Piece
    parts: tuple[tuple[dict[str, Any], int, int], ...]
    length: int


def encode_header(piece: Piece, parts: Sequence[Part]) -> bytes:
    """Return the bytes before the parts."""
    told = [[part.about, len(part.data), _checksum(part.data)] for part in parts]
    body = json.dumps({**_facts(piece), "parts": told}, separators=(",", ":")).encode()
    head = (TAIL_MAGIC if piece.tail else MAGIC) + _LENGTH.pack(len(body)) + body
    return head + hashlib.sha256(head).digest()


def most_header(piece: Piece, parts: int) -> int:
    """Return the most bytes that the header of a piece with so many parts can have."""
    return HEAD_BYTES + NAME_BYTES * len(piece.model) + PART_HEAD_BYTES * parts + HASH_TEXT_BYTES * len(piece.hashes)


def header_length(first: bytes | bytearray) -> int:
    """
    Return the bytes of a whole header, from its first bytes.

    Raises:
        DamagedError: If it is of another format.
    """
    start = len(MAGIC)
    if first[:start] not in (MAGIC, TAIL_MAGIC) or len(first) < start + _LENGTH.size:
        raise DamagedError("another format")
    length = int(_LENGTH.unpack_from(first, start)[0])
    if length > MOST_HEADER:
        raise DamagedError("a header without end")
    return start + _LENGTH.size + length + _DIGEST


FIRST_BYTES = len(MAGIC) + _LENGTH.size
"""Bytes that `header_length` needs."""


def decode_header(data: bytes | bytearray, size: int) -> Header:
    """
    Return a header.

    Args:
        data: Its bytes, no more and no less.
        size: Bytes of the whole file.

    Raises:
        DamagedError: If anything disagrees.
    """
    head, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(head).digest() != digest:
        raise DamagedError("a damaged header")
    try:
        facts = json.loads(head[FIRST_BYTES:])
        parts = tuple((dict(about), int(nbytes), int(check)) for about, nbytes, check in facts["parts"])
        piece = replace(_piece(facts), nbytes=size)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError("a header of other fields") from error
    if bool(piece.tail) != data.startswith(TAIL_MAGIC) or len(data) + sum(nbytes for _, nbytes, _ in parts) != size:
        raise DamagedError("a torn file")
    return Header(piece, parts, len(data))


def decode_parts(header: Header, data: bytes | bytearray | memoryview) -> list[Part]:
    """
    Return the parts of a file, without a copy.

    Args:
        header: Its header.
        data: The whole file.

    Raises:
        DamagedError: If a checksum disagrees.
    """
    parts, position, view = [], header.length, memoryview(data)
    for about, nbytes, check in header.parts:
        part = view[position : position + nbytes]
        if len(part) != nbytes or _checksum(part) != check:
            raise DamagedError("a damaged part")
        parts.append(Part(about, part))
        position += nbytes
        liveness.moved()
    return parts


def encode_index(pieces: Iterable[Piece], hours: Sequence[Sequence[int]]) -> bytes:
    """Return the index of some pieces, with the bytes written by the hour."""
    body = json.dumps({"pieces": [_facts(piece) for piece in pieces], "hours": hours}, separators=(",", ":")).encode()
    return INDEX_MAGIC + hashlib.sha256(body).digest() + body


def decode_index(data: bytes | bytearray) -> tuple[list[Piece], list[list[int]]]:
    """
    Return what `encode_index` wrote.

    Raises:
        DamagedError: If anything disagrees.
    """
    start = len(INDEX_MAGIC)
    digest, body = data[start : start + _DIGEST], data[start + _DIGEST :]
    if data[:start] != INDEX_MAGIC or hashlib.sha256(body).digest() != digest:
        raise DamagedError("a damaged index")
    try:
        facts = json.loads(body)
        return [_piece(each) for each in facts["pieces"]], [[int(a), int(b)] for a, b in facts["hours"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError("an index of other fields") from error


def _facts(piece: Piece) -> dict[str, Any]:
    return {
        "namespace": piece.namespace,
        "model": piece.model,
        "start": piece.start,
        "parent": piece.parent.hex(),
        "hashes": b"".join(piece.hashes).hex(),
        "anywhere": piece.anywhere,
        "nbytes": piece.nbytes,
        **({"tail": piece.tail.hex()} if piece.tail else {}),
        **({"part": piece.part} if piece.part else {}),
    }


def _piece(facts: dict[str, Any]) -> Piece:
    hashes = bytes.fromhex(facts["hashes"])
    if len(hashes) % HASH_BYTES or facts["start"] < 0:
        raise DamagedError("a torn chain")
    cut = tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
    return Piece(
        str(facts["namespace"]), str(facts["model"]), int(facts["start"]), bytes.fromhex(facts["parent"]), cut,
        bool(facts["anywhere"]), int(facts["nbytes"]), bytes.fromhex(facts.get("tail", "")),
        str(facts.get("part", "")),
    )  # fmt: skip


def _checksum(data: bytes | memoryview) -> int:
    return zlib.crc32(data)
