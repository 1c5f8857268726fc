"""`mlx-sidecar group`: makes the key of a group, shows its machines, and measures the links between them."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import asdict
from pathlib import Path

import click

from daemon.cli.output.formatting import examples, print_json, printable, table
from daemon.cli.session import Session, pass_session
from daemon.shared.wording import size


@click.group("group", epilog=examples("mlx-sidecar group status", "mlx-sidecar group test"))
def command() -> None:
    """Look at the machines that compute large models together."""


_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@command.command("key", epilog=examples("mlx-sidecar group key ~/.mlx-sidecar/group.key"))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def key(file: Path) -> None:
    """Write a new key to FILE, for group_key_file of each machine."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32) + "\n")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None
    click.echo(f"Wrote {file}. Copy it to each machine, by scp for example; it is all that a machine needs to join.")


@command.command("status", epilog=examples("mlx-sidecar group status", "mlx-sidecar group status --json"))
@_json
@pass_session
def status(session: Session, /, as_json: bool) -> None:
    """Show the machines of the daemon's group, and its models in memory."""
    with session.client() as client:
        group = client.stats().group
    if as_json:
        return print_json(asdict(group))
    if not group.ranks:
        raise click.ClickException("This daemon has no group; set group_ranks in its configuration.")
    rows = [[str(rank.rank), rank.address, _told(rank.problem, rank.versions)] for rank in group.ranks]
    table(["RANK", "ADDRESS", "STATE"], rows)
    click.echo(f"The group is {group.state}, and was started again {group.restarts:,} times.")
    if group.problem:
        click.echo(f"{printable(group.problem)}.")
    for model in group.models:
        click.echo(f"{model.info.model}: {size(model.info.size_bytes)} on each machine")
    return None


@command.command("test", epilog=examples("mlx-sidecar group test"))
@_json
@pass_session
def test(session: Session, /, as_json: bool) -> None:
    """Measure the link from this machine to each other one: versions, latency and bandwidth."""
    from daemon.server.group.handshake import GroupError, read_key
    from daemon.server.group.probe import measure

    config = session.config()
    if not config.group_ranks:
        raise click.ClickException("group_ranks is not set; this machine is no first rank.")
    rows: list[list[str]] = []
    links: list[dict[str, object]] = []
    address = "This machine:"
    try:
        shared = read_key(config.group_key_file)
        for address in config.group_ranks[1:]:
            link = asyncio.run(measure(address, shared))
            links.append({"address": address, **asdict(link)})
            speed = f"{size(int(link.bytes_per_second))}/s"
            rows.append([address, f"{1e3 * link.round_trip:.2f} ms", speed, ", ".join(link.versions)])
    except GroupError as error:
        raise click.ClickException(f"{address} {error}.") from None
    if as_json:
        return print_json(links)
    table(["ADDRESS", "ROUND TRIP", "BANDWIDTH", "VERSIONS"], rows)
    return None


def _told(problem: str, versions: tuple[str, ...]) -> str:
    return printable(problem) or ", ".join(versions) or "this machine"
