"""`mlx-sidecar load`: load a model with progress, pin it, or estimate its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.output.formatting import examples, print_json
from daemon.cli.output.progress import follow
from daemon.cli.session import Session, absolute, absolute_if_path, calls_daemon, seconds
from daemon.shared.wording import size

if TYPE_CHECKING:
    from mlx_sidecar import ModelInfo


@click.command(
    "load",
    epilog=examples(
        "mlx-sidecar load mlx-community/Qwen3-8B-4bit --pin",
        "mlx-sidecar load ./my-model --ttl 10m",
        "mlx-sidecar load mlx-community/Qwen3-8B-4bit --estimate-only --json",
    ),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.option("--pin/--unpin", default=None, help="Keep the model until it is stopped, or no longer do so.")
@click.option("--ttl", metavar="DURATION", callback=seconds, help="Time until the idle model is stale, such as 10m.")
@click.option("--revision", default="", help="Branch, tag or commit of a Hub model.")
@click.option("--adapter", default="", callback=absolute, help="Directory of a LoRA adapter.")
@click.option(
    "--context-length",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Longest prompt plus answer, instead of what the model's configuration says.",
)
@click.option("--estimate-only", is_flag=True, help="Say what the model would take and load nothing.")
@click.option("--no-download", is_flag=True, help="Refuse a model that is not on this machine yet.")
@click.option("--skip-warmup", is_flag=True, help="Do not run a few tokens after the load.")
@click.option("--json", "as_json", is_flag=True, help="Print the model as JSON.")
@calls_daemon
def command(session: Session, /, model: str, no_download: bool, as_json: bool, **options: Any) -> None:
    """Load MODEL (a Hub id, a directory or "embedded") and show how far it is."""
    with session.client(ask=True) as client:
        # With a download allowed, an estimate would fetch the model, as `pull` does.
        allow_download = not (no_download or options["estimate_only"])
        info = follow(client.get_or_load(model, allow_download=allow_download, **options))
    if as_json:
        print_json(info)
    else:
        click.echo(_describe(info, options["pin"]))


def _describe(info: ModelInfo, pin: bool | None) -> str:
    took = f"{info.load_time or 0:.1f} s"
    kept = {True: ", pinned until it is stopped", False: ", no longer pinned", None: ""}[pin]
    text = {
        "hit": f"{info.model} is ready, it was loaded already ({size(info.size_bytes)}){kept}.",
        "uncached": f"{info.model} was loaded in {took} but is not kept, because model_cache_mb is 0.",
        "estimated": f"{info.model} would take {size(info.size_bytes)}"
        + (
            f", and {size(info.kv_bytes_per_token)} for each token of a prompt."
            if info.fingerprint
            else "; it is not on this machine yet."
        ),
    }.get(info.outcome, f"{info.model} is ready: {size(info.size_bytes)}, loaded in {took}{kept}.")
    if 0 < info.max_request_tokens < info.context_length:
        text += f"\nMemory has room for requests of {info.max_request_tokens} of its {info.context_length} tokens."
    if info.evicted:
        text += f"\nDropped to make room: {', '.join(info.evicted)}."
    return text
