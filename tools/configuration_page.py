"""Write docs/configuration.md from the configuration's own fields: `python -m tools.configuration_page`."""

from __future__ import annotations

from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

from daemon.shared.config import ENV_PREFIX, KEYS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
HEAD = f"""\
# Configuration

Made from `daemon/shared/config.py` by `make gen`; change its fields, not this page.

A value comes from the first of these that has one: a flag (`--max-models 2`), a variable
(`{ENV_PREFIX}MAX_MODELS=2`), the file `~/.mlx-sidecar/config.toml` (`max_models = 2`), the default.
`mlx-sidecar config` prints each value and where it came from; `serve` has a flag for each key. Durations are seconds,
or text such as `90s`, `10m`, `1h30m`. Sizes are in MiB, of 1,048,576 bytes. A wrong or unknown key stops the start with
one sentence that names it; so does a file that is none, that has more than 64 KiB, or that is nested too deep.
Values are read at the start; `mlx-sidecar serve` has to be started anew after a change.

```toml
# ~/.mlx-sidecar/config.toml
model_cache_mb = 16384
model_ttl = "30m"
log_file = "~/.mlx-sidecar/daemon.log"

[aliases]
fast = "mlx-community/Qwen3-8B-4bit"
```

Hub variables (`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`) are read by the daemon's process, not by the
client's.

"""
_COMPUTED = {
    "socket": "`~/.mlx-sidecar/sidecar.sock`; Linux: `$XDG_RUNTIME_DIR/mlx-sidecar/sidecar.sock`",
    "state_dir": "`~/.mlx-sidecar`",
}
"""Defaults that depend on the user or the system."""
_KINDS = {"str": "text", "int": "whole number", "float": "duration", "bool": "true or false", "Path": "absolute path"}


def page() -> str:
    """Return the page as Markdown."""
    return HEAD + "\n\n".join(_entry(key, field) for key, field in KEYS.items()) + "\n"


def _entry(key: str, field: Field[Any]) -> str:
    about = field.metadata["help"] + "."
    if more := field.metadata["more"]:
        about += f" {more}"
    flag = "--" + key.replace("_", "-")
    if isinstance(field.default, bool):
        flag += f"` or `--no-{key.replace('_', '-')}"
    facts = f"{_kind(field)}; default {_default(key, field)}; `{ENV_PREFIX}{key.upper()}`, `{flag}`"
    return f"## `{key}`\n\n{about}\n\n{facts}"


def _kind(field: Field[Any]) -> str:
    kind = str(field.type)
    if kind.startswith("Literal"):
        return "one of " + kind.removeprefix("Literal[").removesuffix("]").replace('"', "`").replace("'", "`")
    if kind == "tuple[str, ...]":
        return "list of texts (commas between them in the variable, the flag repeated)"
    if kind.startswith("Mapping"):
        pair = field.metadata["metavar"]
        return f'table ("{pair}" with commas between them in the variable and the flag)'
    if kind.startswith("tuple"):
        return 'list of absolute paths (":" between them in the variable, the flag repeated)'
    if kind.startswith("int | Literal"):
        return "whole number, or `auto`"
    return _KINDS[kind.removesuffix(" | None")]


def _default(key: str, field: Field[Any]) -> str:
    if field.default is MISSING:
        return "none" if field.default_factory is dict else _COMPUTED[key]
    if field.default in (None, (), ""):
        return "none"
    if isinstance(field.default, float):
        return f"`{field.default:g}` (seconds)"
    return f"`{str(field.default).lower()}`"


if __name__ == "__main__":
    PAGE.write_text(page())
