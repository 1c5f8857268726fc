"""The configuration's file, config.toml: read within limits, as names and raw values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon.shared.small_file import read_small

MOST_BYTES = 64 * 1024
MOST_DOTS = 1000
"""Size of that file, and dots in it outside of comments."""
VOLUMES = Path("/Volumes")
"""Where macOS mounts disks. Only the system makes directories there."""


class ConfigError(Exception):
    """An unknown name or a wrong value. The text is one sentence: key, origin, value, and the allowed values."""


def settings_of(path: Path) -> Mapping[str, Any]:
    """
    Return what a file sets; nothing if there is no such file.

    Raises:
        ConfigError: If it cannot be read, is not TOML, or is too large or too deep; or if its directory is none.
    """
    import tomllib  # here: most commands do not need it

    _check_directory(path.parent)
    try:
        text = read_small(path, MOST_BYTES).decode("utf-8").replace("\r\n", "\n")
        if _dots(text) > MOST_DOTS:
            raise RecursionError
        content = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: byte {error.start} is not UTF-8.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error).partition(';')[0]}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep; each setting is one line, such as: max_models = 4.") from None
    if "state_dir" in content:
        raise ConfigError(f"{path} sets state_dir, which only MLX_SIDECAR_STATE_DIR or --state-dir can set.")
    return _flat(content)


def _check_directory(state_dir: Path) -> None:
    """Refuse a state directory that can never be one, before the daemon works without its files."""
    place = state_dir
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if place == VOLUMES and place != state_dir:
        # Without config.toml a daemon would begin with defaults, and with no model_roots.
        raise ConfigError(
            f"state_dir {state_dir} is on a disk that is not mounted; mount it, or choose another one with "
            "MLX_SIDECAR_STATE_DIR or --state-dir."
        )
    if not place.is_dir():
        what = "is" if place == state_dir else f"is below {place}, which is"
        raise ConfigError(
            f"state_dir {state_dir} {what} no directory; move that away, or choose another one with "
            "MLX_SIDECAR_STATE_DIR or --state-dir."
        )


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of the table `[group]` under their own names, such as `group_ranks`."""
    group = content.get("group")
    if not isinstance(group, dict):
        return content
    others = {name: value for name, value in content.items() if name != "group"}
    return others | {f"group_{name}": value for name, value in group.items()}


def _dots(text: str) -> int:
    """Count the dots outside of comments. The time of the parser grows with the square of a key's parts."""
    return sum(line.count(".") for line in text.splitlines() if not line.lstrip().startswith("#"))
