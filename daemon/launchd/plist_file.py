"""The installed plist file: replaced atomically, and restored if launchd refuses the new content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.launchd.errors import AgentError
from daemon.shared.small_file import replace_in_place


class PlistFile:
    """
    The file that launchd reads at login.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def holds(self, content: bytes) -> bool:
        """Tell whether the file exists with exactly this content."""
        return self._read() == content

    def write(self, content: bytes) -> None:
        """
        Replace the content atomically; directories are created.

        Raises:
            AgentError: If the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Addresses of proxies in it can have passwords. launchd reads it as root, or as its user.
            replace_in_place(self.path, content, 0o600)
        except OSError as error:
            raise AgentError(f"{self.path} cannot be written ({error.strerror}); make its directory writable") from None

    def remove(self) -> bool:
        """
        Remove the file, and tell whether it existed.

        Raises:
            AgentError: If it cannot be removed.
        """
        existed = os.path.lexists(self.path)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise AgentError(f"{self.path} cannot be removed ({error.strerror}); remove it yourself") from None
        return existed

    @contextmanager
    def replaced(self, content: bytes) -> Iterator[bytes | None]:
        """Write new content and yield the old, or None. The old content is restored if the block fails."""
        old = self._read()
        self.write(content)
        try:
            yield old
        except BaseException:
            if old is None:
                self.remove()
            else:
                self.write(old)
            raise

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise AgentError(f"{self.path} cannot be read ({error.strerror}); move it away") from None
