"""`mlx-sidecar serve`: runs the daemon in the foreground."""

from __future__ import annotations

import sys

import click

from daemon.cli.flags import config_flags, resolve
from daemon.cli.output.formatting import examples
from daemon.cli.session import Session, pass_session
from daemon.shared.distributions import mismatch
from daemon.shared.kept_out import kept_out, unused_digests


@click.command(
    "serve",
    epilog=examples("mlx-sidecar serve", "mlx-sidecar serve --model-cache-mb 16384 --model-ttl 30m"),
)
@config_flags
@pass_session
def command(session: Session, /, **flags: object) -> None:
    """
    Run the daemon until it gets SIGTERM or Ctrl-C.

    Values come from the defaults, config.toml, MLX_SIDECAR_* variables and these flags; the last one wins.
    """
    if problem := mismatch():
        raise click.ClickException(f"{problem}.")
    config = resolve(session.socket_flag, flags).config
    # TLS, digests of OpenSSL and tracebacks on a console: a daemon has no use for them.
    with kept_out("ssl", "rich", *unused_digests()):
        import secrets  # noqa: F401 - the server imports it when its engine has started, beyond this block

        from daemon.server.app import run  # after the configuration, which is refused without these imports

    sys.exit(run(config))
