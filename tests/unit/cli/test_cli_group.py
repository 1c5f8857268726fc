"""`mlx-sidecar group`: the key that machines share."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from daemon.cli import main
from daemon.server.group.handshake import read_key


def test_group_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    """What it writes is a key that a rank takes."""
    file = tmp_path / "group.key"
    assert CliRunner().invoke(main, ["group", "key", str(file)]).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(read_key(file)) == 32


def test_group_key_is_never_overwritten(tmp_path: Path) -> None:
    """Machines that have the old key would be locked out."""
    file = tmp_path / "group.key"
    file.write_text("old")
    assert CliRunner().invoke(main, ["group", "key", str(file)]).exit_code != 0
    assert file.read_text() == "old"
