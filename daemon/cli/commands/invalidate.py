"""`mlx-sidecar invalidate`: drops weights and cached prefixes, after a dry run and a question."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from daemon.cli.commands.completion import complete_model
from daemon.cli.output.formatting import examples, print_json, stdin_is_terminal
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.shared.wording import count, size

if TYPE_CHECKING:
    from mlx_sidecar import Client, Invalidated


@dataclass(frozen=True)
class _Target:
    """The target of an Invalidate: `model` None means all models, `prefix` None means the whole model."""

    model: str | None
    prefix: str | None
    salt: str
    weights: bool
    prefixes: bool

    def drop(self, client: Client, dry_run: bool) -> Invalidated:
        if self.model is None:
            return client.invalidate_all(weights=self.weights, prefixes=self.prefixes, dry_run=dry_run)
        if self.prefix is not None:
            return client.invalidate_prefix(self.model, self.prefix, salt=self.salt, dry_run=dry_run)
        return client.invalidate_model(self.model, weights=self.weights, prefixes=self.prefixes, dry_run=dry_run)


@click.command(
    "invalidate",
    epilog=examples(
        "mlx-sidecar invalidate mlx-community/Qwen3-8B-4bit",
        "mlx-sidecar invalidate embedded --prefix 'You are a helpful'",
        "mlx-sidecar invalidate --all --no-weights --yes",
    ),
)
@click.argument("model", required=False, callback=absolute_if_path, shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="Drop what belongs to any model.")
@click.option("--prefix", metavar="TEXT", help="Drop only prompts that begin with this text.")
@click.option("--salt", default="", help="Salt under which the prompts of --prefix were cached.")
@click.option("--weights/--no-weights", default=True, show_default=True, help="Drop weights.")
@click.option("--prefixes/--no-prefixes", default=True, show_default=True, help="Drop cached prefixes.")
@click.option("--dry-run", is_flag=True, help="Only show what would be dropped.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was dropped as JSON.")
@calls_daemon
def command(
    session: Session,
    /,
    model: str | None,
    everything: bool,
    prefix: str | None,
    salt: str,
    weights: bool,
    prefixes: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Drop the weights and cached prefixes of MODEL. Requests that run finish on what they hold."""
    target = _Target(model, prefix, salt, weights, prefixes)
    _check(target, everything)
    if not (yes or dry_run or stdin_is_terminal()):
        raise click.UsageError("Without a terminal it cannot ask; give --yes or --dry-run.")
    with session.client() as client:
        if yes or dry_run or _agreed(target.drop(client, dry_run=True)):
            # Called even if there is nothing to drop, because an Invalidate also lifts a quarantine.
            result = target.drop(client, dry_run=dry_run)
        elif as_json:
            return print_json({"models": [], "blocks": 0, "bytes_freed": 0, "bytes_in_use": 0, "dry_run": False})
        else:
            return None
    if as_json:
        print_json(asdict(result) | {"dry_run": dry_run})
    else:
        click.echo(_describe(result, "Would drop" if dry_run else "Dropped", model))
    return None


def _check(target: _Target, everything: bool) -> None:
    if (target.model is not None) == everything:
        raise click.UsageError("Name a MODEL or give --all.")
    if target.prefix is not None and everything:
        raise click.UsageError("--prefix needs a MODEL, not --all.")
    if target.prefix is None and target.salt:
        raise click.UsageError("--salt belongs to --prefix.")
    given = click.get_current_context().get_parameter_source
    flags = [given(name) is ParameterSource.COMMANDLINE for name in ("weights", "prefixes")]
    if target.prefix is not None and any(flags):
        raise click.UsageError("--prefix drops cached prefixes only; leave --weights and --prefixes out.")
    if not (target.weights or target.prefixes):
        raise click.UsageError("--no-weights and --no-prefixes together leave nothing to drop.")


def _agreed(planned: Invalidated) -> bool:
    if _is_empty(planned):
        return True
    click.echo(_describe(planned, "Would drop", None), err=True)
    if click.confirm("Go on?", err=True):
        return True
    click.echo("Nothing was dropped.", err=True)
    return False


def _is_empty(result: Invalidated) -> bool:
    return not (result.models or result.blocks or result.bytes_freed or result.bytes_in_use)


def _describe(result: Invalidated, verb: str, model: str | None) -> str:
    if _is_empty(result):
        known = "" if model is None else f"; `mlx-sidecar ps` and `mlx-sidecar cache ls` tell what there is of {model}"
        return f"Nothing to drop{known}."
    parts = [f"the weights of {', '.join(result.models)}"] if result.models else []
    if result.blocks or not parts:
        parts.append(f"{count(result.blocks, 'block')} of cached prefixes")
    text = f"{verb} {' and '.join(parts)}; {size(result.bytes_freed)} freed"
    if result.bytes_in_use:
        text += f", {size(result.bytes_in_use)} more when their last user ends"
    return text + "."
