"""The token of the door: a secret that each request on a port must carry, in a file that only its owner can read."""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from daemon.shared.small_file import read_small

FILE_NAME = "http_token"
MOST_BYTES = 1024


class TokenError(Exception):
    """The token's file is unfit. The text is one sentence: why, and what to do."""


def read_token(state_dir: Path) -> str:
    """
    Return the token, which is made at the first call.

    Args:
        state_dir: The daemon's directory for files of its own; created if it is missing.

    Raises:
        TokenError: If the file is another user's, readable by others, not regular or has no token in it; or if it is
            missing and cannot be made.
    """
    path = state_dir / FILE_NAME
    try:
        if not os.path.lexists(path):
            _made(path)
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise TokenError(f"The token file {path} is not a regular file of yours; move it away.")
        if found.st_mode & 0o077:
            raise TokenError(f"Other users may read the token file {path}; delete it, and a new token is made.")
        token = read_small(path, MOST_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise TokenError(f"The token file {path} cannot be used ({error.strerror}); move it away.") from None
    if not re.fullmatch(r"[\w.~+/=-]{16,}", token, re.ASCII):
        raise TokenError(f"The token file {path} has no token of 16 characters or more; delete it to get a new one.")
    return token


def _made(path: Path) -> None:
    """Make the file whole or not at all. If two processes make it at once, both read that of the first."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{FILE_NAME}.{secrets.token_hex(8)}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(f"{secrets.token_urlsafe(32)}\n".encode())
                file.flush()
                os.fsync(fd)
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        text = f"The token file {path} cannot be made ({error.strerror})"
        raise TokenError(f"{text}; make its directory writable, or set another state_dir.") from None
