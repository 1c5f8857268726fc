"""
Opens the files of a model safely; no other module of the daemon opens them.

A model directory may hold anything. To open a FIFO waits for ever, to read a device never ends, and a link may lead to
another user's files. Only regular files below the allowed directories are opened, without waiting. No more bytes are
read than expected, whatever the file system says of their number. Libraries get bytes, or a private copy of the small
files.
"""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from daemon.shared.errors import Reason, SidecarError

Roots = tuple[Path, ...]
"""Directories, without links, that links may lead into; empty allows any."""

SMALL_BYTES = 256 << 20
"""Most bytes of a file that a library reads as a whole; the largest known file has 40 MB."""
COPIED_BYTES = 512 << 20
"""Most bytes of all such files of a model."""
COPIED_FILES = 512
"""Most of such files of a model."""

_SUFFIXES = {".json", ".jsonl", ".txt", ".jinja", ".model", ".tiktoken", ".spm", ".codes", ".bpe", ".tokenizer"}
"""Files that transformers and mlx-lm read of a model beside its weights. No Python file is among them."""
_FOLDERS = ("additional_chat_templates",)
_APPLE_DOUBLE = "._"
"""How names of files begin in which macOS keeps attributes on foreign file systems. Their endings are of no meaning."""
_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
"""Without waiting for the writer of a FIFO; without following a link that took the place of the checked file."""
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_DATALESS = 0x40000000
"""macOS: the flag (SF_DATALESS, sys/stat.h) of a file with its content in a cloud drive alone."""


def allowed(roots: Roots, *folders: Path) -> Roots:
    """
    Return the directories that the files of some model directories may lie in, links followed; empty for any.

    The configured directories and the model directories themselves are allowed. If a model directory is a snapshot in
    the Hub's cache, so are the blobs there: its files are links to them.
    """
    if not roots:
        return ()
    places = [*roots]
    for folder in folders:
        own = folder.resolve()
        places.append(own)
        if own.parent.name == "snapshots" and own.parent.parent.name.startswith("models--"):
            places.append(own.parent.parent / "blobs")
    return tuple(places)


def lies_in(path: Path, folders: Iterable[Path]) -> bool:
    """Return whether a path lies in any of these directories. No link is in any of the paths."""
    return any(path.is_relative_to(folder) or _begins_with(path, folder) for folder in folders)


def _begins_with(path: Path, folder: Path) -> bool:
    """Return whether a path begins with another spelling of a directory: macOS takes any case and form of Unicode."""
    beginning = Path(*path.parts[: len(folder.parts)])
    if _folded(beginning) != _folded(folder):
        return False
    try:
        return os.path.samefile(beginning, folder)
    except OSError:
        return False


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFD", str(path)).casefold()


def opened(file: Path, roots: Roots = ()) -> FileIO:
    """
    Open a file of a model for reading, unbuffered. Never waits for another process.

    Args:
        file: The file; its directory is that of the model, or of an adapter.
        roots: Where it may lie, links followed; see `allowed`.

    Raises:
        SidecarError: MODEL_CORRUPT if it is no regular file or a link to nothing; MODEL_NOT_FOUND if it lies elsewhere;
            MACHINE_FAULT if its content is in a cloud drive alone.
        OSError: If there is no such file, or it cannot be opened.
    """
    real = _checked(file, roots)
    opened_file = open(os.open(real, _FLAGS), "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    assert isinstance(opened_file, FileIO)
    try:
        _refuse_unfit(file, os.fstat(opened_file.fileno()))  # another file may have taken its place
    except SidecarError:
        opened_file.close()
        raise
    return opened_file


def check(file: Path, roots: Roots = ()) -> None:
    """
    Refuse a file that `opened` would refuse, without opening it.

    Raises:
        SidecarError: As `opened` does.
        OSError: If there is no such file, or the file system cannot tell.
    """
    _checked(file, roots)


def read(file: Path, roots: Roots = (), most: int = SMALL_BYTES) -> bytes:
    """
    Return the content of a file of a model.

    Args:
        file: The file.
        roots: As for `opened`.
        most: Bytes that it may have. No more are read, whatever size the file system gives.

    Raises:
        SidecarError: MODEL_CORRUPT if it has more, and as `opened` does.
        OSError: If it cannot be read.
    """
    with opened(file, roots) as source:
        return b"".join(_pieces(file, source, most))


@contextmanager
def private_copy(path: Path, roots: Roots = ()) -> Iterator[Path]:
    """
    Copy the small files of a model into a directory that only this user may enter, and remove it afterwards.

    The copy bears the directory's name. Weights and code are not in it, and nothing in it is a link.

    Args:
        path: The directory of a model.
        roots: As for `opened`.

    Raises:
        SidecarError: MODEL_CORRUPT if one of them is no regular file, or they are too large or too many;
            MODEL_NOT_FOUND if one lies elsewhere.
        OSError: If one cannot be read, or the copy cannot be written.
    """
    with private_folder(path.name) as copy:
        left = COPIED_BYTES
        files = _small_files(path)
        if len(files) > COPIED_FILES:
            raise _corrupt(path, f"has {len(files)} files of text; no tokenizer takes more than {COPIED_FILES}")
        for file in files:
            target = copy / file.relative_to(path)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with opened(file, roots) as source, target.open("xb") as sink:
                left -= _copy(file, source, sink)
            if left < 0:
                raise _corrupt(path, f"has files of more than {COPIED_BYTES} bytes beside its weights")
        yield copy


@contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """
    Make an empty directory of a name that only this user may enter, and remove it afterwards.

    Raises:
        OSError: If it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="mlx-sidecar-") as folder:  # mode 0700
        path = Path(folder) / (name or "model")
        path.mkdir(mode=0o700)
        yield path


def _small_files(path: Path) -> list[Path]:
    folders = [path, *(path / folder for folder in _FOLDERS if (path / folder).is_dir())]
    files = [file for folder in folders for file in folder.iterdir() if file.suffix in _SUFFIXES]
    return sorted(file for file in files if not file.name.startswith(_APPLE_DOUBLE))


def _copy(file: Path, source: FileIO, sink: BinaryIO) -> int:
    return sum(sink.write(piece) for piece in _pieces(file, source, SMALL_BYTES))


def _pieces(file: Path, source: FileIO, most: int) -> Iterator[bytes]:
    size = os.fstat(source.fileno()).st_size
    if size > most:
        raise _corrupt(file, f"has {size} bytes and so is {_too_large(most)}")
    left = most  # the file may grow, and the size of some special files is 0
    while piece := source.read(min(_PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise _corrupt(file, f"is {_too_large(most)}")
        yield piece


def _checked(file: Path, roots: Roots) -> Path:
    """Return the real path of a file that is regular and lies where it may."""
    try:
        real = file.resolve(strict=True)
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise _corrupt(file, "is a link that leads to itself") from error
    except FileNotFoundError:
        if file.is_symlink():
            raise _corrupt(file, "is a link to nothing") from None
        raise
    _refuse_unfit(file, real.lstat())
    if roots and not lies_in(real, roots):
        raise SidecarError(
            Reason.MODEL_NOT_FOUND, f"{file} is a link that leads out of the directories that model_roots allows"
        )
    return real


def _refuse_unfit(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _corrupt(file, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')} and no regular file")
    # Reading it would wait for a download, on the MLX thread too, or fail.
    if getattr(status, "st_flags", 0) & _DATALESS:
        why = f"{file.name} is in a cloud drive and not on this disk"
        raise SidecarError(Reason.MACHINE_FAULT, f"{why}; download it in Finder, and keep models elsewhere")


def _too_large(most: int) -> str:
    return f"larger than {most // 1_000_000} MB, which no model needs"


def _corrupt(file: Path, what: str) -> SidecarError:
    return SidecarError(Reason.MODEL_CORRUPT, f"{file.name} {what}; put the model's own file there")
