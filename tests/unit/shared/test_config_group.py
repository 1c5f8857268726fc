"""The `[group]` table of the configuration: keys of its own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.shared.config import ConfigError
from daemon.shared.config_sources import load_config


def test_table_of_a_group_has_keys_of_its_own(tmp_path: Path) -> None:
    """`ranks` in `[group]` is `group_ranks`, and `[group.models]` is a table of models."""
    (tmp_path / "config.toml").write_text(
        '[group]\nranks = ["10.0.0.1", "10.0.0.2:7411"]\nkey_file = "~/k"\n[group.models]\n"org/large" = "tensor"\n'
    )
    config = load_config({"state_dir": str(tmp_path)}, {}, Path("/home/me")).config
    assert config.group_ranks == ("10.0.0.1", "10.0.0.2:7411")
    assert config.group_key_file == Path("/home/me/k")
    assert config.group_models == {"org/large": "tensor"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group_ranks", "10.0.0.1"),
        ("group_ranks", "10.0.0.1:1,10.0.0.2:2"),
        ("group_ranks", "10.0.0.1,mac.local:2"),
        ("group_ranks", "10.0.0.1,10.0.0.2:2,10.0.0.2:2"),
        ("group_listen", "10.0.0.1"),
        ("group_listen", "10.0.0.1:99999"),
        ("group_listen", "0.0.0.0:7411"),
        ("group_ranks", "0.0.0.0,10.0.0.2:2"),
        ("group_ranks", "10.0.0.1,10.0.0.2:0"),
        ("group_models", "org/large"),
        ("group_models", "org/large=halves"),
    ],
)
def test_group_that_cannot_be_is_refused(key: str, value: str, tmp_path: Path) -> None:
    """By its key, with what is allowed."""
    with pytest.raises(ConfigError, match=f"{key} from --{key.replace('_', '-')} is .* but must be"):
        load_config({"state_dir": str(tmp_path), key: value}, {}, tmp_path)


def test_rank_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A number is an address to Python, and to nothing else here."""
    (tmp_path / "config.toml").write_text('[group]\nranks = [167772161, "10.0.0.2:7411"]\n')
    with pytest.raises(ConfigError, match=r"group_ranks from .* must be"):
        load_config({"state_dir": str(tmp_path)}, {}, Path("/home/me"))
