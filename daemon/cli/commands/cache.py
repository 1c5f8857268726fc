"""`mlx-sidecar cache`: lists, checks and drops the prefixes that lie on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.output.formatting import examples, print_json, printable, span, stdin_is_terminal, table
from daemon.cli.session import Session, absolute_if_path, knows_socket, pass_session
from daemon.shared.wording import count, size
from mlx_sidecar import DaemonNotRunning

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.kv.disk.files import Files
    from daemon.kv.disk.piece import Piece


@dataclass(slots=True)
class Kept:
    """
    The prefixes of one model on the disk.

    Attributes:
        model: The name that it was asked for by; empty for files that are damaged.
        part: Which part of the model they are of, if it runs on a group of machines; and the versions of MLX and mlx-lm
            that computed them, if others are installed. Empty for whole models of the installed versions.
        tokens: Tokens of all its blocks.
        bytes: Bytes of its files.
        files: How many files.
        used: Seconds since the last use of any of them.
    """

    model: str
    part: str = ""
    tokens: int = 0
    bytes: int = 0
    files: int = 0
    used: float = float("inf")


@click.group("cache", epilog=examples("mlx-sidecar cache ls", "mlx-sidecar cache rm org/model"))
def command() -> None:
    """Look at the prefixes that lie on the disk, where they outlive restarts."""


_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@command.command("ls", epilog=examples("mlx-sidecar cache ls", "mlx-sidecar cache ls --json"))
@_json
@pass_session
def ls(session: Session, /, as_json: bool) -> None:
    """List what is on the disk, by model."""
    places = _places(session)
    listed = [sorted(_by_model(files), key=lambda each: each.used) for files in places]
    kept, sizes = [*chain(*listed)], [sum(each.bytes for each in of) for of in listed]
    notes = [*_small(session, places[0], sizes[0]), *chain(*(_no_pieces(files).values() for files in places))]
    if as_json:
        directory = str(places[0].folder)
        return print_json({"directory": directory, "models": [asdict(each) for each in kept], "notes": notes})
    if not kept:
        click.echo(f"No prefix is on the disk, in {places[0].folder}.")
        return _echo(notes)
    rows = [[_name(each), count(each.tokens, "token"), size(each.bytes), _ago(each)] for each in kept]
    table(["MODEL", "PREFIXES", "SIZE", "LAST USED"], rows)
    for files, nbytes, of in zip(places, sizes, listed, strict=True):
        if of:
            click.echo(f"{size(nbytes)} in {files.folder}")
    return _echo(notes)


@command.command("verify", epilog=examples("mlx-sidecar cache verify"))
@_json
@pass_session
def verify(session: Session, /, as_json: bool) -> None:
    """Read every byte on the disk, and compare it with its checksum. Nothing is changed."""
    checked: dict[Path, bool] = {}
    notes: list[str] = []
    places = _places(session)
    for files in places:
        others = _no_pieces(files)
        notes += others.values()
        checked |= {
            files.folder / name: piece is not None and _is_sound(files, piece)
            for name, piece, _ in _look(files)
            if name not in others
        }
    damaged = sorted(path for path, sound in checked.items() if not sound)
    if as_json:
        names = [str(path.relative_to(places[0].folder)) for path in damaged]
        print_json({"files": len(checked), "damaged": names, "notes": notes})
    else:
        click.echo(f"{count(len(checked), 'file')} checked, {len(damaged) or 'none'} damaged.")
        for path in damaged:
            click.echo(f"  {path}")
        if damaged:
            click.echo("The daemon removes damaged files by itself, and computes their prompts again.")
        _echo(notes)
    if damaged or notes:
        raise click.exceptions.Exit(1)


@command.command("rm", epilog=examples("mlx-sidecar cache rm org/model", "mlx-sidecar cache rm --all --yes"))
@click.argument("model", required=False, callback=absolute_if_path, shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="Drop the prefixes of all models.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_json
@knows_socket
def rm(session: Session, /, model: str | None, everything: bool, yes: bool, as_json: bool) -> None:
    """Drop the prefixes of MODEL, on the disk and in a daemon that runs."""
    if (model is None) != everything:
        raise click.UsageError("Name a MODEL or give --all.")
    if not (yes or stdin_is_terminal()):
        raise click.UsageError("Without a terminal it cannot ask; give --yes.")
    places = _places(session)
    nbytes = _kept(places, model)
    agreed = yes or _agreed(model, nbytes)
    if agreed:
        _drop(session, places, model)
    kept = {str(files.folder): _kept([files], model) for files in places} if nbytes else {}
    left = {folder: nbytes for folder, nbytes in kept.items() if nbytes}
    notes = [*chain(*(_no_pieces(files).values() for files in places))]
    if as_json:
        return print_json(
            {"model": model, "dropped": agreed, "bytes": nbytes, "bytes_left": sum(left.values()), "notes": notes}
        )
    _echo(notes if agreed else ())
    return _tell_dropped(left, model, nbytes) if agreed else None


def _agreed(model: str | None, nbytes: int) -> bool:
    question = f"Drop the prefixes of {model or 'all models'} ({size(nbytes)} on the disk)?"
    if click.confirm(question, err=True):
        return True
    click.echo("Nothing was dropped.", err=True)
    return False


def _drop(session: Session, places: Sequence[Files], model: str | None) -> None:
    """Have the daemon drop prefixes; remove those from the disk that no engine uses."""
    try:
        with session.client() as client:
            if model is None:
                client.invalidate_all(weights=False)
            else:
                client.invalidate_model(model, weights=False)
    except DaemonNotRunning:
        for files in places:
            _remove(files, model)
    else:
        for files in places[1:]:  # of a group that may be no more
            _remove(files, model, if_unused=True)


def _tell_dropped(left: Mapping[str, int], model: str | None, nbytes: int) -> None:
    if not left:
        had = f"Dropped {size(nbytes)} on the disk."
        return click.echo(had if nbytes else f"The disk had no prefix of {model or 'any model'}.")
    return _echo(
        f"{size(kept)} are still in {folder}: the daemon cannot use it now, or has just written there. "
        "What was dropped is removed as soon as the daemon can use it, and is not read before. "
        "`mlx-sidecar doctor` says what is wrong with the directory."
        for folder, kept in left.items()
    )


def _places(session: Session) -> list[Files]:
    """Return the directory of whole models, and that of parts if this machine has some of a group."""
    from daemon.kv.disk.files import Files

    own, group = session.config().kv_disk_folder, session.config().kv_disk_group_folder
    return [Files(own), *([Files(group)] if os.path.isdir(group) else [])]


def _look(files: Files) -> Iterator[tuple[str, Piece | None, float]]:
    try:
        yield from files.look()
    except OSError as error:
        raise click.ClickException(
            f"{files.folder} cannot be read ({error.strerror}); `mlx-sidecar doctor` says what is wrong with it."
        ) from None


def _by_model(files: Files) -> Iterator[Kept]:
    from daemon.kv.keys import BLOCK_TOKENS

    found: dict[tuple[str, str], Kept] = {}
    now = time.time()
    others = _no_pieces(files)
    for name, piece, used in _look(files):
        if name in others:
            continue
        model, part = (printable(piece.model), _part(piece)) if piece is not None else ("", "")
        kept = found.setdefault((model, part), Kept(model, part))
        kept.files += 1
        kept.bytes += piece.nbytes if piece is not None else _bytes_of(files.folder / name)
        kept.tokens += BLOCK_TOKENS * len(piece.hashes) if piece is not None else 0
        kept.used = min(kept.used, max(0.0, now - used))
    yield from found.values()


def _part(piece: Piece) -> str:
    from daemon.cache.mlx.computing_place import code_of_kv

    return printable(piece.part.removesuffix(code_of_kv()).removesuffix(", "))


def _no_pieces(files: Files) -> dict[str, str]:
    """Return a sentence for each name of a piece that something else has."""
    from daemon.kv.disk.piece import SUFFIX
    from daemon.kv.disk.troubles import no_piece

    told = {path: no_piece(path) for path in sorted(files.folder.glob(f"*{SUFFIX}"))}  # no header is read for it
    return {path.name: f"{printable(str(path))} {what}." for path, what in told.items() if what}


def _small(session: Session, files: Files, used: int) -> Iterator[str]:
    """Yield a sentence if the budget is too small to write anything."""
    from daemon.kv.disk.limits import budget, share
    from daemon.kv.disk.troubles import mend_small, small, too_small

    config = session.config()
    wanted = share(config.kv_disk_bytes, shared=bool(config.group_ranks))
    if files.folder.is_dir() and too_small(wanted, most := budget(wanted, used, files.space())):
        yield f"{small(wanted, most)}: {mend_small(wanted)}."


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _echo(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(note)


def _kept(places: Iterable[Files], model: str | None) -> int:
    """Return the bytes on the disk of a model, or of all."""
    every = chain(*(_by_model(files) for files in places))
    return sum(each.bytes for each in every if model is None or each.model == model)


def _bytes_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _name(kept: Kept) -> str:
    return f"{kept.model} ({kept.part})" if kept.part else kept.model or "(damaged)"


def _ago(kept: Kept) -> str:
    return f"{span(kept.used)} ago"


def _is_sound(files: Files, piece: Piece) -> bool:
    from daemon.kv.disk.format import DamagedError

    try:
        files.read(piece)
    except FileNotFoundError:
        return True  # evicted meanwhile
    except (OSError, DamagedError):
        return False
    return True


def _remove(files: Files, model: str | None, *, if_unused: bool = False) -> None:
    """Remove files while no engine uses them; if one does and `if_unused`, leave them to it."""
    from daemon.kv.disk.files import UnusableError

    if not files.folder.is_dir():
        return
    try:
        files.open()
        names = [
            name
            for name, piece, _ in _look(files)
            if (model is None and not _is_directory(files.folder / name))
            or (piece is not None and piece.model == model)
        ]
        files.remove(names, lasting=True)
    except OSError as error:
        if if_unused and isinstance(error, UnusableError):
            return
        raise click.ClickException(f"{files.folder}: {error.strerror or error}") from None
    finally:
        files.close()
