"""`mlx-sidecar show`: everything that is known of one model, without loading it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from daemon.cli.commands.completion import complete_model
from daemon.cli.commands.ls import abilities, fitting, tree
from daemon.cli.output.formatting import examples, print_json, printable
from daemon.cli.session import Session, absolute_if_path, calls_daemon
from daemon.shared.wording import size

if TYPE_CHECKING:
    from mlx_sidecar import ListedModel, ModelInfo


@click.command(
    "show",
    epilog=examples("mlx-sidecar show mlx-community/Qwen3-8B-4bit", "mlx-sidecar show embedded --json"),
)
@click.argument("model", callback=absolute_if_path, shell_complete=complete_model)
@click.option("--json", "as_json", is_flag=True, help="Print the model as JSON; sizes in bytes.")
@calls_daemon
def command(session: Session, /, model: str, as_json: bool) -> None:
    """Show what is known of MODEL: its place, sizes, context, and what it can do. Nothing is loaded."""
    from daemon.cli.model_list import Listing

    with session.client() as client:
        info = client.load(model, estimate_only=True)
        listed = Listing(client.list_models(), from_daemon=True).named(model)
    if as_json:
        return print_json({"info": asdict(info), "listed": None if listed is None else tree(listed)})
    for name, value in _facts(info, listed):
        click.echo(f"{name:<14}{printable(value)}")
    return None


def _facts(info: ModelInfo, listed: ListedModel | None) -> list[tuple[str, str]]:
    """Return the names and values of the facts that are known."""
    facts = [
        ("model", info.model),
        ("revision", info.revision),
        ("architecture", info.architecture),
        ("layers", str(info.num_layers or "")),
        ("context", f"{info.context_length} tokens" if info.context_length else ""),
        ("vocabulary", f"{info.vocab_size} tokens" if info.vocab_size else ""),
        ("weights", size(info.size_bytes)),
        ("KV cache", f"{size(info.kv_bytes_per_token)} a token" if info.kv_bytes_per_token else ""),
        ("warnings", "; ".join(info.warnings)),
    ]
    if listed is not None:
        facts += [
            ("quantised", f"{listed.quantization_bits} bits" if listed.quantization_bits else ""),
            ("can", abilities(listed)),
            ("fits", fitting(listed)),
            ("aliases", ", ".join(listed.aliases)),
            ("on disk", size(listed.disk_bytes)),
            ("path", listed.path),
            ("problem", listed.problem),
        ]
    return [(name, value) for name, value in facts if value]
