"""`mlx-sidecar rm`: deletes a model from the Hub cache, after a question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.output.formatting import examples, print_json, stdin_is_terminal
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.shared.wording import size

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy

    from mlx_sidecar import ListedModel


@click.command(
    "rm",
    epilog=examples("mlx-sidecar rm mlx-community/Qwen3-8B-4bit", "mlx-sidecar rm mlx-community/Qwen3-8B-4bit --yes"),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was deleted as JSON.")
@calls_daemon
def command(session: Session, /, model: str, yes: bool, as_json: bool) -> None:
    """
    Delete all revisions of MODEL from the Hub cache.

    A model in memory is refused: stop it first. Directories and the embedded model are never deleted.
    """
    from daemon.cli.model_list import listed

    if not (yes or stdin_is_terminal()):
        raise click.UsageError("Without a terminal it cannot ask; give --yes.")
    listing = listed(session)
    found = _deletable(model, listing.named(model))
    strategy = _strategy(found)
    agreed = yes or click.confirm(f"Delete {found.model} ({size(strategy.expected_freed_size)})?", err=True)
    if agreed:
        with _told(Path(found.path)):
            strategy.execute()
        _check_gone(strategy)
    freed = strategy.expected_freed_size if agreed else 0
    if as_json:
        return print_json({"model": found.model, "deleted": agreed, "bytes_freed": freed})
    click.echo(f"Deleted {found.model}; {size(freed)} freed." if agreed else "Nothing was deleted.")
    return None


def _deletable(name: str, model: ListedModel | None) -> ListedModel:
    """Return the model that is to be deleted, if it is one that may be."""
    if model is None and name.startswith("/"):
        raise click.ClickException(f"{name} is a directory outside of the Hub cache; delete it yourself.")
    if model is None:
        raise click.ClickException(f"{name} is not in the Hub cache; mlx-sidecar ls lists what is.")
    if model.place == "embedded":
        raise click.ClickException("The embedded model is a part of mlx-sidecar.")
    if model.place != "hub_cache":
        raise click.ClickException(f"{model.path} is a directory outside of the Hub cache; delete it yourself.")
    if model.loaded:
        raise click.ClickException(f"{model.model} is in memory; first: mlx-sidecar stop {model.model}")
    return model


def _check_gone(strategy: DeleteCacheStrategy) -> None:
    """Refuse to call a deletion done that was not: huggingface_hub only logs what it may not delete."""
    left = [path for path in (*strategy.repos, *strategy.snapshots) if path.exists()]
    if left:
        raise click.ClickException(f"{left[0]} could not be deleted as a whole.")


def _strategy(model: ListedModel) -> DeleteCacheStrategy:
    """Return what huggingface_hub would delete: every revision, and the files that no other revision needs."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.file_download import repo_folder_name

    # <cache>/models--org--name/snapshots/<commit>; the daemon's cache need not be the one of this shell.
    folder = Path(model.path).parents[2]
    with _told(folder):
        cache = scan_cache_dir(folder)
    repos = frozenset(repo for repo in cache.repos if repo.repo_id == model.model and repo.repo_type == "model")
    commits = [revision.commit_hash for repo in repos for revision in repo.revisions]
    # Of this repository alone: a copy of it on the Hub has the same commits, and only these are named.
    strategy = replace(cache, repos=repos).delete_revisions(*commits)
    if repos:
        return strategy
    # Its scan leaves a damaged one out, such as one with a link to nothing: it is deleted whole, to be fetched anew.
    whole = folder / repo_folder_name(repo_id=model.model, repo_type="model")
    return replace(strategy, repos=frozenset([whole]), expected_freed_size=model.disk_bytes)


@contextmanager
def _told(place: Path) -> Iterator[None]:
    """Turn a fault of the disk in a block into a sentence."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"{error.filename or place}: {error.strerror}.") from None
