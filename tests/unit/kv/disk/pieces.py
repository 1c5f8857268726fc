"""Pieces of a made-up prompt."""

from __future__ import annotations

from daemon.kv.disk.files import INDEX, Files
from daemon.kv.disk.piece import Part, Piece, chain, root_hash

NAMESPACE = "a" * 192 + "/" + "b" * 64
HASHES = chain(NAMESPACE, [bytes([letter] * 64) for letter in range(8)])
PIECE = Piece(NAMESPACE, "org/model", 0, root_hash(NAMESPACE), tuple(HASHES[:4]))
PARTS = [Part({"group": 0}, bytes(range(256)) * 5), Part({"group": 1}, b"\x07" * 100)]


def all_steps(files: Files) -> None:
    """Write another piece and the index, and remove the piece."""
    files.open()
    files.write(Piece(NAMESPACE, "m", 4, HASHES[3], tuple(HASHES[4:])), PARTS)
    files.write_index([], [])
    files.remove([PIECE.name], lasting=True)


def held(files: Files) -> list[str]:
    """Return the names of all pieces and private files."""
    return sorted(path.name for path in files.folder.iterdir() if path.name not in ("lock", INDEX))


def content(parts: list[Part]) -> list[bytes]:
    """Return the bytes of some parts."""
    return [bytes(part.data) for part in parts]
