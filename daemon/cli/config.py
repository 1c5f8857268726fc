"""`mlx-sidecar config`: which value each setting has, and who said so."""

from __future__ import annotations

import json

import click

from daemon.cli.flags import config_flags, resolve
from daemon.cli.session import Session, pass_session
from daemon.cli.text import examples, print_json, table
from daemon.config import FILE_NAME, KEYS


@click.command(
    "config",
    epilog=examples("mlx-sidecar config", "mlx-sidecar config --json", "MLX_SIDECAR_MAX_MODELS=2 mlx-sidecar config"),
)
@config_flags
@click.option("--json", "as_json", is_flag=True, help="Print value, origin and description of each key as JSON.")
@pass_session
def command(session: Session, /, as_json: bool, **flags: object) -> None:
    """Print the configuration that `serve` would use with the same flags, and where each value comes from."""
    resolved = resolve(session.socket_flag, flags)
    values = json.loads(resolved.config.to_json())
    if as_json:
        about = {key: field.metadata["help"] for key, field in KEYS.items()}
        return print_json(
            {key: {"value": values[key], "origin": resolved.origins[key], "about": about[key]} for key in KEYS}
        )
    rows = [[key, _show(values[key]), resolved.origins[key], KEYS[key].metadata["help"]] for key in KEYS]
    table(["KEY", "VALUE", "ORIGIN", "ABOUT"], rows)
    file = resolved.config.state_dir / FILE_NAME
    click.echo(f"\n{file} {'was read' if file.exists() else 'does not exist'}.")
    return None


def _show(value: object) -> str:
    match value:
        case None | []:
            return "-"
        case list():
            return ", ".join(map(str, value))
        case float():
            return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
