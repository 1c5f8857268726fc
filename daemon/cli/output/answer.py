"""Prints an answer while it streams, and its timings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.output.formatting import printable, span, stdout_is_terminal
from daemon.shared.wording import count

if TYPE_CHECKING:
    from mlx_sidecar import Completion, GenerateStream, Miss


def print_answer(stream: GenerateStream) -> None:
    """
    Print each delta at once, and a line end after the last. An answer without text prints nothing.

    On a terminal, control characters are replaced, and the model's reasoning is shown first, dimmed. A pipe gets the
    text only.

    Raises:
        SidecarError: If the call fails; the text before the failure is printed by then.
    """
    _show(_parts(stream))


def print_samples(stream: GenerateStream) -> None:
    """
    Print several answers in the order of their indexes, each when it is complete, after a line with its seed.

    Raises:
        SidecarError: If the call fails; what there is of the answers is printed by then.
    """
    from mlx_sidecar import Delta, Finished

    parts: dict[int, list[tuple[str, str]]] = {}
    ends: dict[int, Finished] = {}
    following = 0
    try:
        for event in stream:
            if isinstance(event, Delta):
                parts.setdefault(event.index, []).append((event.reasoning, event.text))
            elif isinstance(event, Finished):
                ends[event.index] = event
                while following in ends:
                    _show_sample(following, f"seed {ends[following].seed}", parts.pop(following, []))
                    following += 1
    finally:
        for index in sorted(parts):
            end = ends.get(index)
            _show_sample(index, "cut short" if end is None else f"seed {end.seed}", parts[index])


def _show_sample(index: int, note: str, parts: list[tuple[str, str]]) -> None:
    click.echo(f"--- sample {index}, {note} ---")
    _show(parts)


def _show(parts: Iterable[tuple[str, str]]) -> None:
    """Print pieces of reasoning and text, as `print_answer` says."""
    terminal = stdout_is_terminal()
    clean: Callable[[str], str] = printable if terminal else str
    last, reasons = "", False
    try:
        for reasoning, text in parts:
            if reasoning and terminal:
                last, reasons = reasoning, True
                click.secho(clean(reasoning), nl=False, dim=True)
            if text:
                if reasons:
                    click.echo("" if last.endswith("\n") else "\n")
                last, reasons = text, False  # before the print, because Ctrl-C can interrupt right after it
                click.echo(clean(text), nl=False)
    finally:
        if last and not last.endswith("\n"):
            click.echo()


def _parts(stream: GenerateStream) -> Iterator[tuple[str, str]]:
    """Yield reasoning and text of each delta. Closing this generator early cancels the call."""
    from mlx_sidecar import Delta

    with closing(stream):
        for event in stream:
            if isinstance(event, Delta):
                yield event.reasoning, event.text


def print_timings(*samples: Completion) -> None:
    """Print tokens and speeds of an answer, or of all samples of a prompt together, to stderr."""
    usage, timings = samples[0].usage, samples[0].timings
    computed = usage.prompt_tokens - usage.cached_tokens
    # Prefill produces the first token, so decode produced one fewer.
    decoded = sum(max(sample.usage.completion_tokens - 1, 0) for sample in samples)
    spans = [sample.timings.decode for sample in samples if sample.timings.decode is not None]
    from_disk = f" ({samples[0].disk_tokens:,} from the disk)" if samples[0].disk_tokens else ""
    lines = [
        ("prompt", f"{count(usage.prompt_tokens, 'token')}, {usage.cached_tokens:,} of them cached{from_disk}"),
        *([] if (miss := samples[0].miss) is None else [("miss", describe_miss(miss))]),
        ("first token", "-" if timings.first_token is None else f"{timings.first_token:.3f} s"),
        ("prefill", _speed(computed, timings.prefill)),
        ("decode", _speed(decoded, max(spans, default=None))),
    ]
    click.echo("\n" + "\n".join(f"{label:<12} {text}" for label, text in lines), err=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print what the daemon warns of, a line each, to stderr."""
    for text in warnings:
        click.echo(f"Warning: {printable(text)}", err=True)


def cut_warnings(results: Sequence[Completion], options: Mapping[str, Any]) -> Iterator[str]:
    """
    Yield a sentence for each answer that ended at its most tokens, and is of no use so.

    Args:
        results: The answers.
        options: The options of the Generate call that they answer.
    """
    for result in results:
        if result.reason != "length":
            continue
        tokens = f"the answer was cut after {count(result.usage.completion_tokens, 'token')}"
        if "json_object" in options or "json_schema" in options:
            yield f"{tokens}, so it is no whole JSON; raise --max-tokens"
        elif result.reasoning and not result.text:
            yield f"{tokens}, all of them reasoning; raise --max-tokens, or lower --think-budget"


def describe_miss(miss: Miss) -> str:
    """Return why a prompt was not reused further, in words."""
    tokens = count(miss.token, "token")
    seen = "" if miss.seen is None else f", {span(miss.seen)} ago"
    match miss.reason:
        case "never_seen":
            return "no stored prompt begins like this one"
        case "diverged":
            return f"differs from a stored prompt from token {miss.token:,} on{_place(miss)}{seen}"
        case "evicted" | "invalidated":
            return f"{tokens} were stored and are {miss.reason}{seen}"
        case "other_namespace":
            return f"{tokens} are stored for another {' and '.join(miss.differs)}{seen}"
        case "too_short":
            return "too few tokens to reuse any"
        case "resume_point":
            shared = f"{tokens} are shared with a stored prompt{_place(miss)}{seen}"
            return f"{shared}, but the model can only go on from token {miss.resume_token:,}"
        case other:
            return other.replace("_", " ")


def _place(miss: Miss) -> str:
    message = "" if miss.message is None else f", message {miss.message}"
    return message + ("" if miss.character is None else f", character {miss.character:,}")


def _speed(tokens: int, seconds: float | None) -> str:
    speed = f" in {seconds:.3f} s, {tokens / seconds:,.1f} tokens/s" if seconds else ""
    return count(tokens, "token") + speed
