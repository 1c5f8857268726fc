"""The file that keeps digests of large weight files from one run of the daemon to the next."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import structlog

from daemon.cache.digests import MOST_FILES, Stamp
from daemon.shared.log_fields import cause
from daemon.shared.small_file import read_small, replace_small

FILE_NAME = "digests.json"
_VERSION = 1
_MAX_BYTES = 16_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger()


class DigestFile:
    """
    A JSON file that is replaced as a whole and readable by its owner only.

    A fault of it costs only time: the weight files are hashed again. Writing may hang with the disk.

    Args:
        path: The file; its directory is made by the first write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, tuple[Stamp, str]]:
        """Return stamps and digests by path; nothing if the file is missing, damaged or of another version."""
        try:
            content = json.loads(read_small(self._path, _MAX_BYTES))
            if content["version"] != _VERSION:
                return {}
            return {name: _entry(values) for name, values in content["files"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("digest_notes_read_failed", error=cause(error), directory=str(self._path.parent))
            return {}

    def write(self, known: dict[str, tuple[Stamp, str]]) -> None:
        """Replace the content by the last MOST_FILES of some stamps and digests. A failure is logged."""
        newest = list(known.items())[-MOST_FILES:]
        files = {name: [*astuple(stamp), digest] for name, (stamp, digest) in newest}
        try:
            replace_small(self._path, json.dumps({"version": _VERSION, "files": files}).encode())
        except OSError as error:
            log.warning("digest_notes_write_failed", error=cause(error), directory=str(self._path.parent))


def _entry(values: Any) -> tuple[Stamp, str]:
    *numbers, digest = values
    if len(numbers) != 4 or not all(type(number) is int for number in numbers) or not _DIGEST.fullmatch(digest):
        raise ValueError("not an entry")
    return Stamp(*numbers), digest
