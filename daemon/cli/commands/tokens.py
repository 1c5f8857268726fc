"""`mlx-sidecar tokens`: counts the tokens of a prompt, prints their ids, or turns ids into text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.input import joined, read_stdin
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.shared.wording import count

if TYPE_CHECKING:
    from mlx_sidecar import Prompt


@click.command(
    "tokens",
    epilog=examples(
        "mlx-sidecar tokens embedded How many tokens are these",
        "mlx-sidecar tokens embedded --chat 'What is the capital of France?' --ids",
        "mlx-sidecar tokens embedded --messages conversation.json",
        "mlx-sidecar tokens embedded --decode 5 17 30",
        "mlx-sidecar tokens embedded < notes.md",
    ),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.argument("text", nargs=-1)
@click.option("--chat", is_flag=True, help="Render the text as the turn of a user, as `run` does.")
@click.option(
    "--messages",
    type=click.File(encoding="utf-8"),
    help='Render a conversation: JSON, a list of messages or {"messages": [...], "tools": [...]}.',
)
@click.option("--decode", is_flag=True, help="TEXT is token ids; print the text that they stand for.")
@click.option("--ids", is_flag=True, help="Print the ids instead of their number.")
@click.option("--json", "as_json", is_flag=True, help="Print ids, number, text and context length as JSON.")
@calls_daemon
def command(
    session: Session,
    /,
    model: str,
    text: tuple[str, ...],
    chat: bool,
    messages: TextIO | None,
    decode: bool,
    ids: bool,
    as_json: bool,
) -> None:
    """Count the tokens of TEXT, or of standard input, under MODEL. Nothing is loaded into memory but its tokenizer."""
    if sum((chat, decode, messages is not None)) > 1:
        raise click.UsageError("--chat, --messages and --decode exclude each other.")
    if messages is not None and text:
        raise click.UsageError("--messages has the whole conversation; leave TEXT out.")
    prompt, options = _conversation(messages) if messages else (_prompt(text, chat, decode), {})
    with session.client() as client:
        try:
            result = client.tokenize(model, prompt, count_only=not (ids or decode or as_json), **options)
        except TypeError as error:
            if messages is None:
                raise
            raise click.UsageError(f"{messages.name}: {error}.") from None  # what the file has is no conversation
    if as_json:
        return print_json(result)
    if decode:
        return click.echo(result.text)
    if ids:
        return click.echo(" ".join(map(str, result.ids)))
    context = f"; the context holds {result.context_length}" if result.context_length else ""
    return click.echo(f"{count(result.count, 'token')}{context}.")


def _prompt(words: tuple[str, ...], chat: bool, decode: bool) -> Prompt:
    text = joined(words) if words else read_stdin()
    if decode:
        try:
            return [int(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise click.UsageError("--decode takes token ids: whole numbers with spaces between them.") from None
    return [{"role": "user", "content": text}] if chat else text


def _conversation(file: TextIO) -> tuple[Prompt, dict[str, Any]]:
    """Return the messages of a file, and its tools as an option."""
    try:
        content = json.load(file)
    except ValueError as error:
        raise click.UsageError(f"{file.name} is not JSON: {error}.") from None
    parts = content if isinstance(content, dict) else {"messages": content}
    if unknown := [name for name in parts if name not in ("messages", "tools")]:
        raise click.UsageError(f"{file.name} has {unknown[0]!r}; a conversation has messages, and may have tools.")
    messages, tools = parts.get("messages"), parts.get("tools", [])
    if not _are_objects(messages) or not messages:
        raise click.UsageError(f"{file.name} has no messages: they are a list of objects, each with role and content.")
    if not _are_objects(tools):
        raise click.UsageError(f"The tools of {file.name} must be a list of objects, each with name and parameters.")
    return messages, {"tools": tools}


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)
