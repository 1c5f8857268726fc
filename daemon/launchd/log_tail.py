"""What was written to a log file since a moment."""

from __future__ import annotations

from pathlib import Path

SHOWN_LINES = 3
SHOWN_BYTES = 2000


class LogTail:
    """
    Remembers how long a file is now; `read` gives what came after that.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from = path.stat().st_size if path.is_file() else 0

    def read(self) -> str:
        """Return the last lines that came, joined; empty if none did, or if the file cannot be read."""
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self._from if end >= self._from else 0, end - SHOWN_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(lines[-SHOWN_LINES:])
