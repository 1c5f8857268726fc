"""The token: made once, private, and refused where others could know it."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.http.token import TokenError, read_token


def test_token_is_made_once(tmp_path: Path) -> None:
    """With 256 bits, in a file of mode 0600; its directory is made as well."""
    token = read_token(tmp_path / "state")
    assert read_token(tmp_path / "state") == token
    assert len(token) >= 43
    assert stat.S_IMODE((tmp_path / "state" / "http_token").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["http_token"]
    assert read_token(tmp_path / "other") != token


def test_token_of_ones_own_is_taken(tmp_path: Path) -> None:
    """If it is long enough and private."""
    file = tmp_path / "http_token"
    file.touch(0o600)
    file.write_text("my-own-token-of-24-chars\n")
    assert read_token(tmp_path) == "my-own-token-of-24-chars"


@pytest.mark.parametrize(
    "content", ["", "short\n", "with space in the middle", "two-lines-of-text\nmore-text-here\n", "é" * 20]
)
def test_unfit_token_is_refused(tmp_path: Path, content: str) -> None:
    """An empty one would let everything in."""
    file = tmp_path / "http_token"
    file.touch(0o600)
    file.write_text(content)
    with pytest.raises(TokenError, match="no token"):
        read_token(tmp_path)


def test_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Also through a link, and whatever is no file."""
    file = tmp_path / "http_token"
    read_token(tmp_path)
    file.chmod(0o640)
    with pytest.raises(TokenError, match="Other users"):
        read_token(tmp_path)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TokenError, match="not a regular file"):
        read_token(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(TokenError, match="not a regular file"):
        read_token(tmp_path)


def test_token_made_by_several_at_once_is_one(tmp_path: Path) -> None:
    """The daemon's door and a command may start together."""
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: read_token(tmp_path), range(8)))) == 1


def test_token_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door is started again and again: on a full disk, each start would leave a file."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TokenError) as refused:
        read_token(tmp_path)
    assert str(refused.value) == (
        f"The token file {tmp_path / 'http_token'} cannot be made (No space left on device); "
        "make its directory writable, or set another state_dir."
    )
    assert not list(tmp_path.iterdir())


def test_token_in_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """There is no file to move away."""
    (tmp_path / "state").touch()
    with pytest.raises(TokenError, match=r"http_token cannot be made \((File exists|Not a directory)\); make its"):
        read_token(tmp_path / "state")
