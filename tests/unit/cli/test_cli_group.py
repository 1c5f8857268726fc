"""`mlx-sidecar group`: the key that machines share, and what its test prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.cache import on_disk
from daemon.cache.on_disk import OnDisk
from daemon.cli import main
from daemon.server.group import probe
from daemon.server.group.handshake import read_key
from daemon.server.group.probe import Link
from daemon.shared.config import Config
from tests.support.groups import write_key


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


def test_group_test_names_what_each_rank_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has lines of its own. A model that is cut by none is not asked for."""
    asked: list[list[str]] = []

    async def measure(address: str, key: bytes, models: list[str]) -> Link:
        asked.append(models)
        there = OnDisk("org/a", "aa", 5) if address.endswith(":1") else OnDisk("org/a", problem="org/a is not there")
        return Link(["mlx 1"], 1e-4, 1e9, [there])

    async def look(config: Config, models: list[str]) -> list[OnDisk]:
        return [OnDisk("org/a", "aa", 5)]

    monkeypatch.setattr(probe, "measure", measure)
    monkeypatch.setattr(on_disk, "look", look)
    settings = {
        "MLX_SIDECAR_STATE_DIR": str(tmp_path),
        "MLX_SIDECAR_GROUP_RANKS": "10.0.0.1,10.0.0.2:1,10.0.0.3:2",
        "MLX_SIDECAR_GROUP_KEY_FILE": str(write_key(tmp_path / "key")),
        "MLX_SIDECAR_GROUP_MODELS": "org/a=tensor,org/b=none",
    }
    result = CliRunner().invoke(main, ["group", "test"], env=settings)
    assert result.exit_code == 1
    assert asked == [["org/a"], ["org/a"]]
    states = [line.split()[-1] for line in result.output.splitlines() if line.startswith("org/a  ")]
    assert states == ["same", "missing"]
    assert "org/a cannot be loaded on 10.0.0.3:2: org/a is not there." in result.output
