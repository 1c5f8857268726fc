"""`mlx-sidecar launch`: starts a tool that works with a model of the daemon."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from daemon.cli.choice import Choice
from daemon.cli.commands.completion import complete_model
from daemon.cli.output.formatting import examples, stderr_is_terminal, stdin_is_terminal
from daemon.cli.output.progress import follow
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.launch.tools import TOOLS, Place, Tool, environment
from daemon.shared.process_setup import inherited
from daemon.shared.wording import count, size

if TYPE_CHECKING:
    from mlx_sidecar import Client, ModelInfo

SHOWN = Place("http://127.0.0.1:PORT", "TOKEN", "", 0, Path("FOLDER"))
"""What `--print` shows for what each launch has anew."""
_KEPT_SECONDS = 365 * 86_400
"""
A tool may run for weeks, and read its files again. macOS removes files from $TMPDIR that were not read for three
days; those of a launch seem to be read in so many seconds from now.
"""


@click.command(
    "launch",
    epilog=examples(
        "mlx-sidecar launch codex --model mlx-community/Qwen3-8B-4bit",
        "mlx-sidecar launch claude --print",
        'mlx-sidecar launch opencode -- run "Add a test."',
    ),
)
@click.argument("tool", type=Choice(list(TOOLS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--model",
    metavar="MODEL",
    callback=absolute_if_path,
    shell_complete=complete_model,
    help="Hub id, directory or alias (default: the chat model in memory that was used last).",
)
@click.option("--print", "shown", is_flag=True, help="Show environment, files and command instead of starting.")
@calls_daemon
def command(session: Session, /, tool: str, arguments: tuple[str, ...], model: str | None, shown: bool) -> None:
    """
    Start TOOL with a model of the daemon; ARGUMENTS after -- are the tool's own.

    The tool is configured by its environment and by temporary files. Nothing of yours is changed.
    """
    record = TOOLS[tool]
    program = shutil.which(record.program)
    if program is None and not shown:
        raise click.ClickException(f"{record.title} is not installed; install it with: {record.install}")
    with session.client(ask=True) as client:
        info, context = _model(client, model, load=not shown)
    arguments = arguments or tuple(record.default)
    if shown:
        _show(record, info.model, context, arguments)
        return
    click.echo(f"{record.title} works with {info.model}, {count(context, 'token')} of context.", err=True)
    _become(session, record, str(program), info.model, context, arguments)


def _model(client: Client, model: str | None, load: bool) -> tuple[ModelInfo, int]:
    """Return the model and the context that fits. The model is loaded, after a question if it has to be fetched."""
    from daemon.launch.context import context_that_fits
    from mlx_sidecar import ModelNotCached

    name = model or _last_used(client)
    try:
        info = follow(client.get_or_load(name, estimate_only=not load, allow_download=False))
    except ModelNotCached:
        if not load:
            raise
        _ask_to_fetch(follow(client.get_or_load(name, estimate_only=True, allow_download=False)))
        info = follow(client.get_or_load(name, allow_download=True))
    context = context_that_fits(info, client.stats())
    if not context:
        raise click.ClickException(f"the weights in memory leave no memory for a prompt of {name}; stop a model")
    return info, context


def _last_used(client: Client) -> str:
    """Return the model in memory that was used last, of those that hold conversations."""
    models = client.stats().models
    if not models:
        raise click.UsageError("No model is in memory: name one with --model; mlx-sidecar ls lists those you have.")
    listed = [entry for entry in client.list_models().models if entry.can.embeddings or not entry.can.chat]
    others = {name for entry in listed for name in (entry.model, *entry.aliases)}
    models = tuple(loaded for loaded in models if loaded.info.model not in others)
    if not models:
        raise click.UsageError("No model in memory holds conversations: name one with --model; see mlx-sidecar ls.")
    return min(models, key=lambda loaded: (not loaded.in_use, loaded.idle or 0.0)).info.model


def _ask_to_fetch(info: ModelInfo) -> None:
    if not (stdin_is_terminal() and stderr_is_terminal()):
        text = f"{info.model} is not on this machine; fetch it with: mlx-sidecar pull {shlex.quote(info.model)}"
        raise click.ClickException(text)
    click.confirm(
        f"{info.model} is not on this machine. Fetch {size(info.size_bytes)}?", default=True, abort=True, err=True
    )


def _become(session: Session, tool: Tool, program: str, model: str, context: int, arguments: Sequence[str]) -> NoReturn:
    """Start the door and become the tool. What it needed is gone if that fails, whatever it fails by."""
    from daemon.launch.door import Door, LaunchError

    folder = Path(tempfile.mkdtemp(prefix="mlx-sidecar-"))  # mode 0700
    try:
        door = Door(session.config(), folder)
        settings = tool.settings(Place(door.url, door.token, model, context, folder))
        _write(folder, settings.files)
        door.start()
        _heed_signals()
        os.execve(program, [program, *settings.arguments, *arguments], environment(settings, inherited()))  # noqa: S606
    except LaunchError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{tool.title} cannot be started: {error.strerror}.") from None
    finally:  # it is still this program, so that the tool has not begun
        shutil.rmtree(folder, ignore_errors=True)


def _heed_signals() -> None:
    """End the ignoring of signals that Python ignores: it would pass on to the tool, and to what the tool starts."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.touch(0o600)
        path.write_text(content, "utf-8")
        now = time.time()
        os.utime(path, (now + _KEPT_SECONDS, now))


def _show(tool: Tool, model: str, context: int, arguments: Sequence[str]) -> None:
    """Print what a launch would do, as lines of a shell with files as comments."""
    settings = tool.settings(replace(SHOWN, model=model, context=context))
    for name, content in settings.files.items():
        click.echo(f"# {SHOWN.folder / name}")
        click.echo("".join(f"#   {line}\n" for line in content.splitlines()), nl=False)
    for name in settings.unset:
        click.echo(f"unset {name}")
    for name, value in settings.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    click.echo(shlex.join([tool.program, *settings.arguments, *arguments]))
