"""The configuration file and the directory that it lies in: what cannot be read is refused with its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.shared.config import ConfigError
from daemon.shared.config_sources import load_config
from tests.unit.shared.config_files import refusal, write_file


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    (tmp_path / ".mlx-sidecar").mkdir()
    return tmp_path


def test_invalid_toml_is_refused_with_its_path(home: Path) -> None:
    file = write_file(home, "max_models == 1")
    assert refusal(home).startswith(f"{file} is not valid TOML: ")
    file.write_bytes(b"\xff\xfe")
    assert refusal(home).startswith(f"{file} is not valid TOML: ")


@pytest.mark.parametrize(
    ("place", "said"), [("", " is no"), ("/a/b", " is below {file}, which is no"), ("-link", " is no")]
)
def test_file_in_place_of_state_dir_is_refused(home: Path, place: str, said: str) -> None:
    """The daemon would run without its configuration, prefixes on the disk and notes. So would a link to nowhere."""
    file = home / "file"
    file.touch()
    (home / "file-link").symlink_to("nowhere")
    with pytest.raises(ConfigError) as refused:
        load_config({"state_dir": f"{file}{place}"}, {}, home)
    text = f"state_dir {file}{place}{said.format(file=file)} directory; move that away, or choose another one with "
    assert str(refused.value) == f"{text}MLX_SIDECAR_STATE_DIR or --state-dir."


def test_state_dir_on_a_disk_that_is_away_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac mounts disks at a login, as it starts services. Without config.toml, model_roots would allow all."""
    disks = home / "Volumes"
    disks.mkdir()
    monkeypatch.setattr("daemon.shared.config_file.VOLUMES", disks)
    environ = {"MLX_SIDECAR_STATE_DIR": str(disks / "Models" / "sidecar")}
    assert "is on a disk that is not mounted; mount it, or choose another one" in refusal(home, environ)
    (disks / "Models").mkdir()
    assert load_config({}, environ, home).config.state_dir == disks / "Models" / "sidecar"


def test_directory_in_place_of_config_file_is_refused(home: Path) -> None:
    (home / ".mlx-sidecar" / "config.toml").mkdir()

    assert refusal(home) == f"{home}/.mlx-sidecar/config.toml cannot be read: Is a directory."
