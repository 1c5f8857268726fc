"""`mlx-sidecar group`: the key that machines share, and what its test prints."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from daemon.cache import on_disk
from daemon.cache.on_disk import OnDisk
from daemon.cli import main
from daemon.cli.session import Session
from daemon.server.group import probe
from daemon.server.group.handshake import GroupError, read_key
from daemon.server.group.probe import Link
from daemon.shared.config import Config
from mlx_sidecar import GroupStats, RankStats
from tests.support.groups import write_key


def test_group_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    """What it writes is a key that a rank takes."""
    file = tmp_path / "group.key"
    assert CliRunner().invoke(main, ["group", "key", str(file)]).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(read_key(file)) == 32


def test_group_key_makes_its_directory_private(tmp_path: Path) -> None:
    """The first machine may have had no daemon yet, and one refuses to serve in a directory that is open to others."""
    file = tmp_path / ".mlx-sidecar" / "group.key"
    assert CliRunner().invoke(main, ["group", "key", str(file)]).exit_code == 0
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_group_key_is_never_overwritten(tmp_path: Path) -> None:
    """Machines that have the old key would be locked out."""
    file = tmp_path / "group.key"
    file.write_text("old")
    assert CliRunner().invoke(main, ["group", "key", str(file)]).exit_code != 0
    assert file.read_text() == "old"


def settings(folder: Path, ranks: str) -> dict[str, str]:
    """Return the environment of a first machine with a model of the group and another one."""
    return {
        "MLX_SIDECAR_STATE_DIR": str(folder),
        "MLX_SIDECAR_GROUP_RANKS": ranks,
        "MLX_SIDECAR_GROUP_KEY_FILE": str(write_key(folder / "key")),
        "MLX_SIDECAR_GROUP_MODELS": "org/a=tensor,org/b=none",
    }


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
    result = CliRunner().invoke(main, ["group", "test"], env=settings(tmp_path, "10.0.0.1,10.0.0.2:1,10.0.0.3:2"))
    assert result.exit_code == 1
    assert asked == [["org/a"], ["org/a"]]
    states = [line.split()[-1] for line in result.output.splitlines() if line.startswith("org/a  ")]
    assert states == ["same", "missing"]
    assert "org/a cannot be loaded on 10.0.0.3:2: org/a is not there." in result.output


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_group_test_shows_others_than_a_missing_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """A rank that is not there, and one that could not look, hide no figures of the last one."""

    async def reach(address: str, *_: object, **__: object) -> str:
        if address.endswith(":1"):
            raise GroupError("cannot be reached: Connection refused")
        return address

    async def measured(address: str, models: list[str]) -> Link:
        if address.endswith(":2"):
            return Link(["mlx 1"], 1e-4, 1e9, problem="could not look for models: no memory")
        return Link(["mlx 1"], 1e-4, 1e9, [OnDisk("org/a", "aa", 5)])

    async def look(config: Config, models: list[str]) -> list[OnDisk]:
        return [OnDisk("org/a", "aa", 5)]

    monkeypatch.setattr(probe, "reach", reach)
    monkeypatch.setattr(probe, "_measured", measured)
    monkeypatch.setattr(on_disk, "look", look)
    environ = settings(tmp_path, "10.0.0.1,10.0.0.2:1,10.0.0.3:2,10.0.0.4:3")
    result = CliRunner().invoke(main, ["group", "test", *options], env=environ)
    assert result.exit_code == 1
    if options:
        missing, blind, whole = json.loads(result.output)
        assert (missing["problem"], missing["round_trip"]) == ("cannot be reached: Connection refused", None)
        assert (blind["round_trip"], blind["models"]) == (1e-4, [])
        assert (whole["problem"], whole["models"][0]["state"]) == ("", "same")
    else:
        assert "10.0.0.2:1 cannot be reached: Connection refused.\n" in result.output
        assert "10.0.0.3:2 could not look for models: no memory.\n" in result.output
        assert [line.split()[:3] for line in result.output.splitlines()[1:4]] == [
            ["10.0.0.2:1", "-", "-"],
            ["10.0.0.3:2", "0.10", "ms"],
            ["10.0.0.4:3", "0.10", "ms"],
        ]


@pytest.mark.parametrize(("problem", "status"), [("", 0), ("cannot be reached: Connection refused", 1)])
def test_group_status_names_a_missing_rank(monkeypatch: pytest.MonkeyPatch, problem: str, status: int) -> None:
    """By its exit status too; the others have their lines."""
    ranks = [("10.0.0.1", "", []), ("10.0.0.2:1", problem, ["mlx 1"]), ("10.0.0.3:2", "", ["mlx 1"])]
    group = GroupStats(
        state="ready",
        ranks=tuple(
            RankStats(rank, address, what, tuple(software)) for rank, (address, what, software) in enumerate(ranks)
        ),
    )
    client = SimpleNamespace(stats=lambda: SimpleNamespace(group=group))
    monkeypatch.setattr(Session, "client", lambda _: nullcontext(client))
    result = CliRunner().invoke(main, ["group", "status"])
    assert result.exit_code == status
    assert "10.0.0.3:2  mlx 1" in result.output
    assert problem in result.output


def test_group_status_without_a_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script sees it by the exit status, with and without --json."""
    client = SimpleNamespace(stats=lambda: SimpleNamespace(group=GroupStats()))
    monkeypatch.setattr(Session, "client", lambda _: nullcontext(client))
    for options in ([], ["--json"]):
        result = CliRunner().invoke(main, ["group", "status", *options])
        assert (result.exit_code, "set group_ranks" in result.stderr) == (1, True)
    assert "set group_ranks" in json.loads(result.stdout)["error"]["message"]
