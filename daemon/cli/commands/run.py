"""`mlx-sidecar run`: streams the answer to a prompt, or holds a conversation on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from daemon.cli.choice import Choice
from daemon.cli.commands.completion import complete_model
from daemon.cli.input import joined, piped, read_stdin
from daemon.cli.output.answer import cut_warnings, print_answer, print_samples, print_timings, print_warnings
from daemon.cli.output.formatting import examples, print_json, stdin_is_terminal, stdout_is_terminal
from daemon.cli.output.progress import follow
from daemon.cli.session import Session, absolute, absolute_if_path, calls_daemon, seconds

if TYPE_CHECKING:
    from mlx_sidecar import Client, Prompt

_STDIN = Path("-")


@click.command(
    "run",
    epilog=examples(
        "mlx-sidecar run embedded",
        "mlx-sidecar run embedded Say hello",
        "mlx-sidecar run mlx-community/Qwen3-8B-4bit --file notes.md 'Which of these are done?'",
        "git diff | mlx-sidecar run mlx-community/Qwen3-8B-4bit Review this diff",
        "mlx-sidecar run embedded --raw 'Once upon a time' --max-tokens 50 --verbose",
    ),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Put this file's text before the prompt; - is standard input. Repeatable.",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--system", help="System message of the conversation.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens to generate.")
@click.option("--temperature", type=float, help="0 is greedy. Default: as the model recommends.")
@click.option("--greedy", is_flag=True, help="Always take the likeliest token, whatever the model recommends.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens that sum to this.")
@click.option("--top-k", type=int, help="Choose among this many of the likeliest tokens.")
@click.option("--min-p", type=float, help="Choose among tokens at least this likely, relative to the likeliest.")
@click.option("--repetition-penalty", type=float, help="Make tokens that occurred less likely; 1 is off.")
@click.option("--seed", type=int, help="Makes the answer repeatable.")
@click.option(
    "--think-budget", "reasoning_budget", type=click.IntRange(0), help="End the model's reasoning after so many tokens."
)
@click.option("--samples", type=click.IntRange(1, 16), help="Print so many answers, each after a line with its seed.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option("--format", "form", type=Choice(["json"]), help="Answer with a JSON object.")
@click.option("--adapter", default="", callback=absolute, help="Directory of a LoRA adapter.")
@click.option(
    "--draft-model",
    default="",
    callback=absolute_if_path,
    shell_complete=complete_model,
    help="A smaller model that guesses tokens: same answer, other speed.",
)
@click.option(
    "--speculation",
    type=Choice(["auto", "off", "ngram", "draft", "mtp"]),
    help="What may guess tokens ahead: same answer, other speed.",
)
@click.option("--schema", type=click.File(encoding="utf-8"), help="Answer with JSON that this JSON schema allows.")
@click.option("--regex", help="Answer with text that this regular expression matches as a whole.")
@click.option("--grammar", type=click.File(encoding="utf-8"), help="Answer in this grammar, in llguidance's Lark.")
@click.option("--think/--no-think", default=None, help="Turn a reasoning model's thinking on or off.")
@click.option("--effort", metavar="WORD", help="How much a reasoning model reasons, such as low or high.")
@click.option("--no-cache", is_flag=True, help="Neither use nor store cached prefixes.")
@click.option("--salt", default="", help="Share cached prefixes only with requests of the same salt.")
@click.option(
    "--keep",
    metavar="DURATION",
    callback=seconds,
    help="Keep the prompt's cached prefix for so long, such as 1h: others are evicted first.",
)
@click.option("--verbose", is_flag=True, help="Print tokens and timings to stderr after the answer.")
@click.option("--no-history", is_flag=True, help="Do not keep what is typed in a conversation for the next one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of the text.")
@calls_daemon
def command(
    session: Session,
    /,
    model: str,
    words: tuple[str, ...],
    files: tuple[Path, ...],
    raw: bool,
    system: str | None,
    greedy: bool,
    stop: tuple[str, ...],
    form: str | None,
    adapter: str,
    draft_model: str,
    speculation: str | None,
    schema: TextIO | None,
    regex: str | None,
    grammar: TextIO | None,
    think: bool | None,
    effort: str | None,
    no_cache: bool,
    keep: float | None,
    verbose: bool,
    no_history: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """
    Run PROMPT, or standard input, through MODEL and stream the answer. PROMPT needs no quotes, but for
    characters that the shell reads, such as ? in zsh.

    What is piped in beside a PROMPT is put behind it, once it ends; a program that keeps a pipe of its own open gives
    < /dev/null instead. Without either, on a terminal, hold a conversation. The model is downloaded and loaded if that
    is needed.
    """
    if raw:
        _refuse_chat_options({"--system": system, "--think/--no-think": think, "--effort": effort})
    options = _sampling(sampling, greedy)
    options |= {"stop": stop or None, **_cache_options(no_cache, keep)}
    chat = {"enable_thinking": think, "reasoning_effort": effort}
    options |= {name: value for name, value in chat.items() if value is not None}
    options |= _form(form, schema, regex, grammar)
    models = {"adapter": adapter, "draft_model": draft_model, "speculation": speculation}
    options |= {name: value for name, value in models.items() if value}
    prompt = joined(words) if words else None
    talk = prompt is None and not files and stdin_is_terminal() and stdout_is_terminal()
    if talk and (raw or as_json or sampling["samples"]):
        raise click.UsageError("--raw, --json and --samples need a PROMPT, as an argument or on standard input.")
    if no_history and not talk:
        raise click.UsageError("--no-history is for conversations, which have no PROMPT.")
    text = "" if talk else _text(prompt, files, raw)
    with session.client(ask=True) as client:

        def load() -> None:
            follow(client.get_or_load(model, adapter=adapter, allow_download=True))

        load()
        if talk:
            from daemon.cli.terminal.chat import Chat
            from daemon.cli.terminal.prompt import Terminal

            history = None if no_history else session.state_dir() / "run_history"
            return Chat(client, model, system, options, verbose, load).hold(Terminal(history).ask)
        _answer(client, model, text if raw else _conversation(system, text), options, verbose, as_json)
    return None


def _refuse_chat_options(given: dict[str, Any]) -> None:
    for flag, value in given.items():
        if value is not None:
            raise click.UsageError(f"{flag} needs the chat template, so it cannot go with --raw.")


def _form(form: str | None, schema: TextIO | None, regex: str | None, grammar: TextIO | None) -> dict[str, Any]:
    """Return the option that the answer is kept to a form by; none for free text."""
    given = {"--format": form, "--schema": schema, "--regex": regex, "--grammar": grammar}
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise click.UsageError(f"{' and '.join(flags)} exclude each other.")
    if form:
        return {"json_object": True}
    if regex is not None:
        return {"regex": regex}
    files = {"json_schema": schema, "grammar": grammar}
    return {name: _read_option(file) for name, file in files.items() if file is not None}


def _read_option(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError:
        raise click.UsageError(f"{file.name} is not UTF-8 text.") from None


def _sampling(given: dict[str, Any], greedy: bool) -> dict[str, Any]:
    """Return options with the model's own sampling where they leave it open."""
    if greedy and given["temperature"]:
        raise click.UsageError("--greedy and --temperature exclude each other.")
    return {**given, "model_defaults": True, **({"temperature": 0.0} if greedy else {})}


def _cache_options(no_cache: bool, keep: float | None) -> dict[str, Any]:
    if keep is None:
        return {"cache_mode": "bypass" if no_cache else "read_write"}
    if no_cache:
        raise click.UsageError("--keep and --no-cache exclude each other.")
    return {"cache_mode": "read_write", "keep": keep}


def _text(prompt: str | None, files: Sequence[Path], raw: bool) -> str:
    """
    Return the text of the files, then the prompt, then what is piped in beside it.

    In this order, several questions about the same files share a prefix, and with it the KV cache.
    """
    if prompt is None and not files:
        files = [_STDIN]
    parts = [_read(file) for file in files]
    if prompt is not None:
        parts += [prompt, *([] if _STDIN in files else filter(None, [piped()]))]
    parts = parts if raw else [part.rstrip("\n") for part in parts]
    text = ("" if raw else "\n\n").join(parts)
    if not text:
        raise click.UsageError("The prompt is empty.")
    return text


def _read(file: Path) -> str:
    if file == _STDIN:
        return read_stdin()
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise click.UsageError(f"The prompt on {file} is not UTF-8 text.") from None
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None


def _conversation(system: str | None, text: str) -> Prompt:
    from mlx_sidecar import Message

    before = [] if system is None else [Message(role="system", content=system)]
    return [*before, Message(role="user", content=text)]


def _answer(client: Client, model: str, prompt: Prompt, options: dict[str, Any], verbose: bool, as_json: bool) -> None:
    samples = options["samples"]
    with client.generate(model, prompt, **options) as stream:
        if not as_json and samples:
            print_samples(stream)
        elif not as_json:
            print_answer(stream)
        results = stream.results()
    if as_json:
        print_json(results if samples else results[0])
    print_warnings([*results[0].warnings, *cut_warnings(results, options)])
    if verbose:
        print_timings(*results)
