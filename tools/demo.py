"""
The demonstration of `make demo`: two programs share one daemon, and the second program reuses the first one's prefix.

Starts a daemon of its own in a temporary directory, on the embedded model; leaves no process and no file behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from daemon.cli.serving import listens
from daemon.shared.observed_time import polls
from mlx_sidecar import Client, Completion, Message
from tools.embedded import corpus

FACTS = 40
FILLER = 60
START_SECONDS, STOP_SECONDS = 60, 30

console = Console(highlight=False)


def main() -> int:
    """Run the demonstration and return its exit status: 1 if the second question reused nothing."""
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder, daemon(Path(folder)) as environ:
        cli(environ, "load", "embedded")
        context, first, second = prefix()
        console.print(f"\nOne prefix: {FACTS} facts among other sentences, then two questions, asked by two clients.\n")
        cold = ask(environ, context, first)
        warm = ask(environ, context, second)
        console.print(comparison(cold, warm))
        console.print(
            f"  cold: {corpus.question(first)}  [bold]{cold.text}[/]  (right: {corpus.answer(first)})", soft_wrap=True
        )
        console.print(
            f"  warm: {corpus.question(second)}  [bold]{warm.text}[/]  (right: {corpus.answer(second)})\n",
            soft_wrap=True,
        )
        cli(environ, "ps")
        prefix_cache(environ)
        return 0 if warm.usage.cached_tokens > 0 else 1


def prefix() -> tuple[str, corpus.Fact, corpus.Fact]:
    """Return a text that the model was not trained on, and two of the facts in it."""
    rng = corpus.held_out_rng(2026)
    facts = corpus.facts(rng, FACTS)
    return corpus.passage(rng, facts, FILLER), facts[0], facts[1]


@contextmanager
def daemon(folder: Path, **settings: str) -> Iterator[dict[str, str]]:
    """Run a daemon in a folder, with variables of its own. Yield the environment of its clients once it listens."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")},
        "MLX_SIDECAR_SOCKET": str(folder / "run" / "sidecar.sock"),
        "MLX_SIDECAR_STATE_DIR": str(folder),
        "MLX_SIDECAR_LOG_FILE": str(folder / "daemon.log"),
        **settings,
    }
    process = subprocess.Popen([sys.executable, "-m", "daemon", "serve"], env=environ)
    try:
        # A first start reads libraries from the disk, which can take longer than a client waits.
        for _ in polls(START_SECONDS, 0.05):
            if process.poll() is not None or listens(Path(environ["MLX_SIDECAR_SOCKET"])):
                break
        yield environ
    finally:
        process.terminate()
        status = process.wait(STOP_SECONDS)
        console.print(f"daemon stopped with exit status {status}")


def ask(environ: dict[str, str], context: str, fact: corpus.Fact) -> Completion:
    """Ask for a fact as a program of its own would: with a new connection."""
    messages = [Message("system", context), Message("user", corpus.question(fact))]
    with Client(environ["MLX_SIDECAR_SOCKET"]) as client:
        return client.complete("embedded", messages, max_tokens=32)


def comparison(cold: Completion, warm: Completion) -> Table:
    """Return the figures of both answers side by side."""
    table = Table(show_edge=False)
    for heading in ("", "cold", "warm"):
        table.add_column(heading, justify="left" if not heading else "right")
    figures: list[tuple[str, Callable[[Completion], str]]] = [
        ("prompt tokens", lambda c: str(c.usage.prompt_tokens)),
        ("of them cached", lambda c: str(c.usage.cached_tokens)),
        ("time to first token", lambda c: f"{1000 * (c.timings.first_token or 0):.0f} ms"),
    ]
    for name, figure in figures:
        table.add_row(name, figure(cold), figure(warm))
    return table


def prefix_cache(environ: dict[str, str]) -> None:
    """Print what the prefix cache did."""
    with Client(environ["MLX_SIDECAR_SOCKET"]) as client:
        stats = client.stats().prefix_cache
    console.print(
        f"prefix cache: {stats.blocks} blocks of {stats.block_tokens} tokens in {stats.bytes / 1e6:.1f} MB, "
        f"{stats.hits} of {stats.lookups} prompts hit, {stats.tokens_reused} of {stats.tokens_looked_up} tokens reused"
    )


def cli(environ: dict[str, str], *arguments: str) -> None:
    """Run a command as a user would, and show it."""
    console.print(f"[dim]$ mlx-sidecar {' '.join(arguments)}[/]")
    subprocess.run([sys.executable, "-m", "daemon", *arguments], env=environ, check=True)


if __name__ == "__main__":
    sys.exit(main())
