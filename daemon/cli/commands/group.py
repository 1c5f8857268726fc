"""`mlx-sidecar group`: makes the key of a group, shows its machines, and measures the links between them."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import examples, print_json, printable, table
from daemon.cli.session import Session, knows_socket, pass_session
from daemon.shared.wording import count, size

if TYPE_CHECKING:
    from daemon.server.group.models import Compared
    from daemon.server.group.probe import Link
    from daemon.shared.config import Config
    from mlx_sidecar import GroupStats


@click.group("group", epilog=examples("mlx-sidecar group status", "mlx-sidecar group test"))
def command() -> None:
    """Look at the machines that compute large models together."""


_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@command.command("key", epilog=examples("mlx-sidecar group key ~/.mlx-sidecar/group.key"))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def key(file: Path) -> None:
    """Write a new key to FILE, for group_key_file of each machine."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # ~/.mlx-sidecar, before the first daemon makes it
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32) + "\n")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None
    click.echo(f"Wrote {file}. Copy it to each machine, by scp for example; it is all that a machine needs to join.")


@command.command("status", epilog=examples("mlx-sidecar group status", "mlx-sidecar group status --json"))
@_json
@knows_socket
def status(session: Session, /, as_json: bool) -> None:
    """
    Show the machines of the daemon's group, and its models in memory.

    Exits with 1 if a machine could not be reached.
    """
    with session.client() as client:
        group = client.stats().group
    if not group.ranks:
        raise click.ClickException("This daemon has no group; set group_ranks in its configuration.")
    if as_json:
        print_json(asdict(group))
    else:
        _show_group(group)
    if any(rank.problem for rank in group.ranks):
        raise click.exceptions.Exit(1)


def _show_group(group: GroupStats) -> None:
    rows = [[str(rank.rank), rank.address, _told(rank.problem, rank.versions)] for rank in group.ranks]
    table(["RANK", "ADDRESS", "STATE"], rows)
    click.echo(f"The group is {group.state}, and was started again {group.restarts:,} times.")
    if group.problem:
        click.echo(f"{printable(group.problem)}.")
    for model in group.models:
        click.echo(f"{model.info.model}: {size(model.info.size_bytes)} on each machine")
    if group.disk_budget_bytes:
        click.echo(
            f"Prefixes on the disk of each machine: {size(group.disk_bytes)} of {size(group.disk_budget_bytes)}, "
            f"{count(group.disk_tokens_reused, 'token')} reused from there"
        )
    elif group.state == "ready":
        click.echo(
            "Prefixes on the disk of each machine: none. All need a kv_disk_mb above 0, a directory that can be used, "
            "and room on its disk; the log says what is missing, and where (group_kv_disk_off, kv_disk_unusable, "
            "kv_disk_too_small)."
        )


@command.command("test", epilog=examples("mlx-sidecar group test"))
@_json
@pass_session
def test(session: Session, /, as_json: bool) -> None:
    """
    Measure the link from this machine to each other one, and compare the models of group_models on their disks.

    Nothing is loaded. Exits with 1 if a rank cannot be reached, lacks a model or has another content of it.
    """
    from daemon.server.group.handshake import GroupError, read_key
    from daemon.server.group.probe import measure

    config = session.config()
    if not config.group_ranks:
        raise click.ClickException("group_ranks is not set; this machine is no first rank.")
    names = [config.aliases.get(name, name) for name, how in config.group_models.items() if how != "none"]
    try:
        shared = read_key(config.group_key_file)
    except GroupError as error:
        raise click.ClickException(f"This machine: {error}.") from None
    links = [(address, asyncio.run(measure(address, shared, names))) for address in config.group_ranks[1:]]
    _show_links(links, _compared(config, names, links), as_json)


def _compared(config: Config, names: list[str], links: list[tuple[str, Link]]) -> list[list[Compared]]:
    """Return the models of each link, beside those of this machine."""
    from daemon.cache.on_disk import look
    from daemon.server.group.models import compare

    try:
        own = asyncio.run(look(config, names))
    except OSError as error:
        raise click.ClickException(f"This machine: {error.strerror}.") from None
    return [
        [] if link.models is None else [compare(*pair, address) for pair in zip(own, link.models, strict=True)]
        for address, link in links
    ]


def _show_links(links: list[tuple[str, Link]], models: list[list[Compared]], as_json: bool) -> None:
    """Print what was found, and exit with 1 if a rank is missing or a model cannot run."""
    pairs = list(zip(links, models, strict=True))
    if as_json:
        print_json(
            [
                {"address": at, **asdict(link), "models": [asdict(compared) for compared in of]}
                for (at, link), of in pairs
            ]
        )
    else:
        table(["ADDRESS", "ROUND TRIP", "BANDWIDTH", "VERSIONS"], [_speeds(at, link) for at, link in links])
        if any(models):
            click.echo()
            table(
                ["MODEL", "ADDRESS", "HERE", "THERE", "STATE"],
                [_row(at, compared) for (at, _), of in pairs for compared in of],
            )
        for at, link in links:
            if link.problem:
                click.echo(f"{at} {printable(link.problem)}.")
        for advice in dict.fromkeys(compared.advice for of in models for compared in of if compared.advice):
            click.echo(f"{printable(advice)}.")
    if any(link.problem for _, link in links) or any(
        compared.state in ("missing", "different") for of in models for compared in of
    ):
        raise click.exceptions.Exit(1)


def _speeds(address: str, link: Link) -> list[str]:
    trip = "-" if link.round_trip is None else f"{1e3 * link.round_trip:.2f} ms"
    speed = "-" if link.bytes_per_second is None else f"{size(int(link.bytes_per_second))}/s"
    return [address, trip, speed, ", ".join(link.versions) or "-"]


def _row(address: str, compared: Compared) -> list[str]:
    shown = [
        f"{size(side.size_bytes)} {side.fingerprint}".strip() if not side.problem else "-"
        for side in (compared.here, compared.there)
    ]
    return [compared.model, address, *map(printable, shown), compared.state]


def _told(problem: str, versions: tuple[str, ...]) -> str:
    return printable(problem) or ", ".join(versions) or "this machine"
