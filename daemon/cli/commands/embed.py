"""`mlx-sidecar embed`: turns texts into vectors, one JSON array a line."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import click

from daemon.cli.choice import Choice
from daemon.cli.commands.completion import complete_model
from daemon.cli.input import read_stdin
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.output.progress import follow
from daemon.cli.session import Session, absolute, absolute_if_path, calls_daemon

BATCH = 256
"""Texts of one call, the most that the daemon takes."""
_LINE_END = re.compile(r"\r\n?|\n")
"""The ends of lines in a file. `splitlines` knows more, with which a line could have several vectors."""


@click.command(
    "embed",
    epilog=examples(
        "mlx-sidecar embed mlx-community/Qwen3-Embedding-0.6B-8bit --prompt-name query 'capital of France'",
        "mlx-sidecar embed embedded --pooling last_token 'one text' 'another' --json",
        "mlx-sidecar embed ./my-embedding-model --dimensions 256 < lines.txt > vectors.jsonl",
    ),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.argument("texts", nargs=-1)
@click.option("--prompt-name", help="Instruction of the model that is put before each text, such as query.")
@click.option("--prompt", help="Text that is put before each text, instead.")
@click.option("--dimensions", type=click.IntRange(1), help="Numbers of a vector (default: as the model says).")
@click.option("--normalize/--no-normalize", default=None, help="Give vectors length 1 (default: as the model says).")
@click.option(
    "--pooling",
    type=Choice(["last_token", "mean", "cls"]),
    help="How hidden states become a vector (default: as the model says).",
)
@click.option("--adapter", default="", callback=absolute, help="Directory of a LoRA adapter.")
@click.option("--salt", default="", help="Share cached prefixes only with requests of the same salt.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the vectors and the tokens.")
@calls_daemon
def command(session: Session, /, model: str, texts: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """
    Turn each of TEXTS, or each line of standard input, into a vector, with an embedding MODEL.

    Prints one JSON array of numbers a line. The model is downloaded and loaded if that is needed.
    """
    texts = texts or tuple(line for line in _LINE_END.split(read_stdin()) if line)
    if not texts:
        raise click.UsageError("There is no text.")
    vectors: list[tuple[float, ...]] = []
    usage = {"prompt_tokens": 0, "cached_tokens": 0}
    with session.client(ask=True) as client:
        follow(client.get_or_load(model, adapter=options["adapter"], allow_download=True))
        for start in range(0, len(texts), BATCH):
            result = client.embed(model, texts[start : start + BATCH], **options)
            counted = asdict(result.usage)
            usage = {name: tokens + counted[name] for name, tokens in usage.items()}
            vectors += result.vectors
            if not as_json:
                for vector in result.vectors:
                    click.echo(json.dumps([float(f"{number:.7g}") for number in vector]))
    if as_json:
        described = {"dimensions": result.dimensions, "pooling": result.pooling, "normalized": result.normalized}
        print_json({"model": result.model, **described, "usage": usage, "vectors": vectors})
