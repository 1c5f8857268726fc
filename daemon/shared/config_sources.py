"""
Resolves the configuration once from four sources, with the origin of each value.

Sources, the last wins: defaults, `<state_dir>/config.toml`, `MLX_SIDECAR_*` variables, flags. Each value is checked,
also where a later source overrides it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.shared.config import ENV_PREFIX, FILE_NAME, KEYS, TEST_PREFIX, Config, ConfigError
from daemon.shared.config_file import settings_of
from daemon.shared.wording import did_you_mean

LAUNCH_TOKEN = ENV_PREFIX + "TOKEN"
"""Variable with the token of a launched tool. It is no setting, and commands that the tool runs have it too."""

_FILE_NAMES = {key: key for key in KEYS}
_VARIABLES = {ENV_PREFIX + key.upper(): key for key in KEYS}
_FLAGS = {"--" + key.replace("_", "-"): key for key in KEYS}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and the origin of each value: "default", or the name of a file, variable or flag."""

    config: Config
    origins: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was written. `text` is true for variables and flags, where numbers are written as text."""

    key: str
    raw: Any
    origin: str
    text: bool

    def read(self, home: Path) -> Any:
        try:
            return KEYS[self.key].metadata["read"](self.raw, self.text, home)
        except ValueError as error:
            raise ConfigError(f"{self.key} from {self.origin} is {_shown(self.raw)}, but must be {error}.") from None


def _shown(raw: Any) -> str:
    """Return a value as the error of it shows it."""
    try:
        text = repr(raw)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def load_config(flags: Mapping[str, object], environ: Mapping[str, str], home: Path) -> Resolved:
    """
    Resolve the configuration.

    Args:
        flags: Values by key, typed or as text; None means that the flag was not given.
        environ: The environment.
        home: What "~" stands for.

    Raises:
        ConfigError: For an unknown name, a value of a wrong type or range, or a file that cannot be read.
    """
    outer = [*_from_environment(environ), *_from_flags(flags)]
    values: dict[str, Any] = {"state_dir": home / ".mlx-sidecar"}
    values |= {setting.key: setting.read(home) for setting in outer}
    inner = list(_from_file(values["state_dir"] / FILE_NAME))
    values = {setting.key: setting.read(home) for setting in inner} | values
    origins = dict.fromkeys(KEYS, "default") | {setting.key: setting.origin for setting in [*inner, *outer]}
    return Resolved(Config(**values), origins)


def from_json(text: str) -> Config:
    """
    Return the configuration that `Config.to_json` wrote.

    Raises:
        ConfigError: If a key is unknown or a value out of range.
        ValueError: If `text` is not JSON.
    """
    values = json.loads(text)
    given = (_Given(_known(key, _FILE_NAMES, "JSON"), values[key], "JSON", text=False) for key in values)
    return Config(**{setting.key: setting.read(Path.home()) for setting in given})


def given_value(key: str, flag: str | None, environ: Mapping[str, str], home: Path) -> Any:
    """
    Return the value of one key from its flag, or else from its variable; None if neither is set.

    No other setting is read, so that a mistake there is no obstacle.

    Raises:
        ConfigError: If the value is wrong.
    """
    name = ENV_PREFIX + key.upper()
    given = [*_from_environment({name: environ[name]} if name in environ else {}), *_from_flags({key: flag})]
    return given[-1].read(home) if given else None


def _from_file(path: Path) -> Iterator[_Given]:
    for name, raw in settings_of(path).items():
        yield _Given(_known(name, _FILE_NAMES, str(path)), raw, str(path), text=False)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for name, raw in sorted(environ.items()):
        if name.startswith(ENV_PREFIX) and not name.startswith(TEST_PREFIX) and name != LAUNCH_TOKEN:
            yield _Given(_known(name, _VARIABLES, "the environment"), raw, name, text=True)


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, raw in flags.items():
        if raw is not None:
            flag = "--" + key.replace("_", "-")
            yield _Given(_known(flag, _FLAGS, "the flags"), raw, flag, text=True)


def _known(name: str, allowed: Mapping[str, str], origin: str) -> str:
    if name in allowed:
        return allowed[name]
    hint = did_you_mean(name, allowed) or f"known are {', '.join(allowed)}."
    raise ConfigError(f"{name} in {origin} is no setting; {hint}")
