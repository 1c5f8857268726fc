"""
Compares what is installed of the project: the daemon and its client, which have to be of one version, now and before.

The client's package has the messages of the API. With other messages than its own, a daemon could take a field that it
does not know for one that it has checked. Installers keep the versions equal; a person can upgrade one of them alone.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Sequence

DAEMON, CLIENT = "mlx-sidecar", "mlx-sidecar-client"
AGAIN = "install mlx-sidecar again, with --force or --reinstall, which brings its client"


def _installed(name: str) -> str:
    """Return the version of a distribution, or raise PackageNotFoundError, which is a ModuleNotFoundError."""
    from importlib.metadata import version  # here: it brings the library of mail, and a server asks once

    return version(name)


def _content(name: str) -> int:
    """Return a checksum of the files of a distribution, as its installer has listed them; 0 without such a list."""
    from importlib.metadata import distribution

    return zlib.crc32((distribution(name).read_text("RECORD") or "").encode())


def installed_at(name: str = DAEMON) -> float:
    """Return when a distribution was installed, in seconds since 1970; 0 where its installer has left no list."""
    from importlib.metadata import distribution

    try:
        lists = [file.locate() for file in distribution(name).files or () if file.name == "RECORD"]
        return os.stat(lists[0]).st_mtime if lists else 0.0
    except (ModuleNotFoundError, OSError):
        return 0.0


def mismatch(installed: Callable[[str], str] = _installed) -> str:
    """
    Return a sentence about two versions that differ; empty if they are equal, or if the daemon was not installed.

    Args:
        installed: Returns the version of a distribution, or raises PackageNotFoundError.
    """
    try:
        daemon, client = installed(DAEMON), installed(CLIENT)
    except ModuleNotFoundError:
        return ""
    return "" if daemon == client else f"{DAEMON} {daemon} does not go with {CLIENT} {client}; {AGAIN}"


class Program:
    """
    The installed program, as this process began with it.

    Args:
        names: Its distributions that count; the first one's version is told. Its files count too, and the client's.
        interpreter: Its Python, which runs the engine too.
        installed: Returns the version of a distribution, or raises PackageNotFoundError.
        content: Returns a number for the files of a distribution: other files can be of the same version.
    """

    def __init__(
        self,
        names: Sequence[str] = (DAEMON,),
        interpreter: str | None = None,
        installed: Callable[[str], str] = _installed,
        content: Callable[[str], int] = _content,
    ) -> None:
        self._names = names
        self._interpreter = interpreter or sys.executable
        self._installed = installed
        self._content = content
        self._began_with = self._now()

    def replaced_by(self) -> str | None:
        """Return the version that is in its place now, or an empty text if none is; None if it is there as before."""
        if not os.path.exists(self._interpreter):
            return ""
        try:
            now = self._now()
        except OSError:  # no descriptor is left, or its disk fails: that tells nothing of the program
            return None
        return None if now == self._began_with else now[0][0]

    def _now(self) -> tuple[list[str], list[int]]:
        contents = [self._checksum(name) for name in (self._names[0], CLIENT)]
        return [self._version(name) for name in self._names], contents

    def _checksum(self, name: str) -> int:
        try:
            return self._content(name)
        except ModuleNotFoundError:
            return 0

    def _version(self, name: str) -> str:
        try:
            return self._installed(name) or ""
        except (ModuleNotFoundError, KeyError):  # a file without a version, as an installer leaves it for a moment
            return ""
