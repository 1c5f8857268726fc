"""
Pieces of a package: a tar file that is cut into files of a bounded size, and a manifest of their SHA-256.

The manifest is written last, so a folder with a manifest had all of its pieces. Only the standard library is imported:
the file goes with the pieces to a machine that has nothing else of the project.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "manifest.json"
_READ = 1 << 20


class PieceError(Exception):
    """What is wrong with a folder of pieces, as one line, with the way out of it."""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut(source: Path, folder: Path, most_bytes: int, about: Mapping[str, object]) -> dict[str, Any]:
    """
    Cut a file into pieces, and write their manifest.

    Args:
        source: The file.
        folder: Gets the pieces. Other pieces that are there are removed.
        most_bytes: Size of the largest piece.
        about: More for the manifest.

    Returns:
        The manifest.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for old in folder.glob("piece-*"):
        old.unlink()
    pieces = []
    with source.open("rb") as file:
        for number in range(-(-source.stat().st_size // most_bytes)):
            path = folder / f"piece-{number:02}"
            with path.open("wb") as piece:
                _copy(file, piece, most_bytes)
            pieces.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path)})
    manifest = {**about, "bytes": source.stat().st_size, "sha256": digest(source), "pieces": pieces}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """
    Return the manifest of a folder.

    Raises:
        PieceError: If there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise PieceError(f"{path} is missing; copy it with the pieces, or pack them anew") from None
    except ValueError as error:
        raise PieceError(f"{path} is damaged ({error}); copy it again") from None
    return manifest


def faults(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Return a sentence for each piece that is missing or not what was packed."""
    for piece in manifest["pieces"]:
        path = folder / piece["name"]
        if not path.exists():
            yield f"{piece['name']} is missing"
        elif path.stat().st_size != piece["bytes"]:
            yield f"{piece['name']} has {path.stat().st_size:,} bytes instead of {piece['bytes']:,}"
        elif digest(path) != piece["sha256"]:
            yield f"{piece['name']} is damaged: its SHA-256 differs"


def unpack(folder: Path, target: Path) -> dict[str, Any]:
    """
    Join the pieces of a folder, and unpack what they hold.

    Args:
        folder: Has the pieces and the manifest.
        target: Gets what they hold; what a run before unpacked is taken if it is the same.

    Returns:
        The manifest without its list of pieces.

    Raises:
        PieceError: If a piece is missing or damaged.
    """
    manifest = read(folder)
    told = {name: value for name, value in manifest.items() if name != "pieces"}
    done = target / "unpacked"
    if done.exists() and done.read_text() == manifest["sha256"]:
        return told
    if wrong := [*faults(folder, manifest)]:
        raise PieceError(f"{'; '.join(wrong)}; copy what is named again into {folder}")
    target.mkdir(parents=True, exist_ok=True)
    joined = target / "package.tar.gz"
    with joined.open("wb") as file:
        for piece in manifest["pieces"]:
            with (folder / piece["name"]).open("rb") as part:
                _copy(part, file, piece["bytes"])
    if digest(joined) != manifest["sha256"]:
        raise PieceError(f"the pieces do not belong together; copy all of one package into {folder}")
    with tarfile.open(joined) as tar:
        tar.extractall(target, filter="data")
    joined.unlink()
    done.write_text(manifest["sha256"])
    return told


def _copy(source: BinaryIO, target: BinaryIO, most_bytes: int) -> None:
    while most_bytes and (block := source.read(min(_READ, most_bytes))):
        most_bytes -= target.write(block)
