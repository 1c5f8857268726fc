"""Configuration files of a home, and why they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.shared.config import ConfigError
from daemon.shared.config_sources import load_config


def write_file(home: Path, text: str) -> Path:
    """Write the configuration file of a home, and return its path."""
    file = home / ".mlx-sidecar" / "config.toml"
    file.write_text(text)
    return file


def refusal(home: Path, environ: dict[str, str] | None = None, **flags: object) -> str:
    """Return why the configuration of a home is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(flags, environ or {}, home)
    return str(caught.value)
