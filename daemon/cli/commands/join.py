"""`mlx-sidecar join`: makes this machine a rank of a group."""

from __future__ import annotations

import sys

import click

from daemon.cli.flags import config_flags, resolve
from daemon.cli.output.formatting import examples
from daemon.cli.session import Session, pass_session
from daemon.shared.distributions import mismatch
from daemon.shared.kept_out import kept_out, unused_digests


@click.command(
    "join",
    epilog=examples("mlx-sidecar join --group-listen 10.0.0.2:7411 --group-key-file ~/.mlx-sidecar/group.key"),
)
@config_flags
@pass_session
def command(session: Session, /, **flags: object) -> None:
    """
    Compute large models together with the first machine of a group, until SIGTERM or Ctrl-C.

    It listens on group_listen, and takes work from a machine that has the same group_key_file alone.
    """
    if problem := mismatch():
        raise click.ClickException(f"{problem}.")
    config = resolve(session.socket_flag, flags).config
    # TLS, digests of OpenSSL and tracebacks on a console: a daemon has no use for them.
    with kept_out("ssl", "rich", *unused_digests()):
        from daemon.server.group.joiner import run  # after the configuration, which is refused without these imports

    sys.exit(run(config))
