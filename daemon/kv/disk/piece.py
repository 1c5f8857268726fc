"""
The unit of the disk tier: a piece is one file with a stretch of blocks, or with what is needed to go on at a position.

    blocks  [start, stop) of one path, of all layers with full attention
    resume  the windows and the recurrent states that a request needs to go on after `stop` blocks
    tail    the KV of up to 15 tokens behind `stop` blocks, and the windows and states to go on after them

A block is named by a chain of SHA-256 hashes over its namespace and all token ids up to its end. So a name stands for
a whole beginning of a prompt, and no token id lies in a file. A tail is named likewise. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.kv.keys import model_of

HASH_BYTES = 32
"""Bytes of the hash of a block."""

SUFFIX = ".kv"
"""Ends the name of each piece."""


def is_file_name(name: str) -> bool:
    """Return whether a name can be that of a piece's file, rather than lead to another directory."""
    return name.endswith(SUFFIX) and not any(mark in name for mark in "/\\\0")


def root_hash(namespace: str) -> bytes:
    """Return the hash of the empty prefix of a namespace."""
    return hashlib.sha256(namespace.encode()).digest()


def chain(namespace: str, keys: Iterable[bytes]) -> list[bytes]:
    """Return the hash of each block of a path, given the keys of its blocks."""
    last, hashes = root_hash(namespace), []
    for key in keys:
        last = hash_after(last, key)
        hashes.append(last)
    return hashes


def hash_after(parent: bytes, key: bytes) -> bytes:
    """Return the hash of a block or a tail after one."""
    return hashlib.sha256(parent + key).digest()


@dataclass(frozen=True, slots=True)
class Part:
    """
    Bytes of one array of a piece, at most a few MiB unless one block has more.

    Attributes:
        about: What they are, for the codec alone: values of JSON.
        data: The bytes.
    """

    about: dict[str, Any]
    data: bytes | memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class Piece:
    """
    What lies in one file, without its bytes.

    Attributes:
        namespace: Digest of its namespace.
        model: Name of the model that it was written for, as the request named it.
        start: Index of its first block in its path; for a resume piece the blocks before the position.
        parent: Hash of the block before its first one; for a resume piece, of the last block before the position.
        hashes: Hash of each of its blocks; none for a resume piece.
        tail: Hash of the tail, of a resume piece that has one.
        part: Of which part of the model its KV is, in a group, and what code computed it. The name does not tell, so
            that the pieces of the same tokens have one name on all ranks of a group.
        anywhere: Whether the model can go on after any block, so that it has no resume pieces.
        nbytes: Bytes of the file.
    """

    namespace: str
    model: str
    start: int
    parent: bytes
    hashes: tuple[bytes, ...] = ()
    anywhere: bool = True
    nbytes: int = 0
    tail: bytes = b""
    part: str = ""

    @property
    def stop(self) -> int:
        """Index of the block after its last."""
        return self.start + len(self.hashes)

    def reach(self, path: Sequence[bytes]) -> int:
        """Return up to which block of a path its KV is that of the path; no more than its start if none is."""
        if self.resume:
            return self.start if self.parent in path[self.start - 1 : self.start] else 0
        pairs = zip(self.hashes, path[self.start :], strict=False)
        return self.start + next((index for index, (mine, its) in enumerate(pairs) if mine != its), self._most(path))

    def _most(self, path: Sequence[bytes]) -> int:
        return max(0, min(len(self.hashes), len(path) - self.start))

    @property
    def resume(self) -> bool:
        """Whether it holds what is needed to go on at a position, and no blocks."""
        return not self.hashes

    @property
    def model_digest(self) -> str:
        """The beginning of the names of all namespaces of its model."""
        return model_of(self.namespace)

    @property
    def name(self) -> str:
        """Name of its file: the same content has the same name."""
        kind = b"resume" if self.resume else b"blocks"
        told = b"/".join((kind, self.namespace.encode(), str(self.start).encode(), self.parent, *self.hashes[-1:]))
        told += self.tail
        return hashlib.sha256(told).hexdigest()[:40] + SUFFIX
