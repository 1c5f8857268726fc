"""`mlx-sidecar config`: prints each setting with its value and origin, or a single value for scripts."""

from __future__ import annotations

import json

import click

from daemon.cli.choice import Choice
from daemon.cli.flags import config_flags, resolve
from daemon.cli.output.formatting import examples, print_json, table
from daemon.cli.session import Session, pass_session
from daemon.shared.config import FILE_NAME, KEYS


@click.command(
    "config",
    epilog=examples(
        "mlx-sidecar config",
        "mlx-sidecar config --json",
        'grpcurl -plaintext -unix "$(mlx-sidecar config socket)" list',
        "MLX_SIDECAR_MAX_MODELS=2 mlx-sidecar config",
    ),
)
@click.argument("key", type=Choice(tuple(KEYS)), metavar="[KEY]", required=False)
@config_flags
@click.option("--json", "as_json", is_flag=True, help="Print value, origin and description of each key as JSON.")
@pass_session
def command(session: Session, /, key: str | None, as_json: bool, **flags: object) -> None:
    """
    Print the configuration that `serve` would use with the same flags, and where each value comes from.

    With KEY, print the value of that key and nothing else, for scripts: a list one a line, nothing as an empty line.
    """
    resolved = resolve(session.socket_flag, flags)
    values = json.loads(resolved.config.to_json())
    if key is not None:
        return print_json(values[key]) if as_json else click.echo(_plain(values[key]))
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


def _plain(value: object) -> str:
    """Return a value for scripts: as its environment variable holds it, but a list or a table with one item a line."""
    match value:
        case None:
            return ""
        case dict():
            return "\n".join(f"{name}={one}" for name, one in value.items())
        case list():
            return "\n".join(map(str, value))
        case float():
            return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show(value: object) -> str:
    """Return a value on one line, for the table."""
    return ", ".join(_plain(value).splitlines()) or "-"
