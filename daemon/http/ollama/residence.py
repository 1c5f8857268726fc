"""How long a model stays in memory, as `keep_alive` of a request says."""

from __future__ import annotations

from time import monotonic

from daemon.http.ollama.shared_types import FOREVER
from mlx_sidecar import AsyncClient, LoadOptions

UNLOAD = 0.0
"""The duration that unloads a model after the answer."""


async def settle(client: AsyncClient, model: str, keep: float | None, *, load: bool = False) -> float:
    """
    Load a model, if a request says how long it stays, and tell the daemon so. Returns the seconds that it took.

    A pinned model stays pinned, because another program may have pinned it; UNLOAD drops it all the same.

    Args:
        client: Calls the daemon.
        model: Name of the model.
        keep: Seconds that it stays while idle; FOREVER pins it; None leaves it as it is.
        load: Whether it is loaded in any case.

    Raises:
        SidecarError: If it cannot be loaded.
    """
    if not load and keep in (None, UNLOAD):
        return 0.0
    begun = monotonic()
    options = LoadOptions()
    if keep == FOREVER:
        options["pin"] = True
    elif keep is not None:
        options["ttl"] = keep
    await client.load(model, **options)
    return monotonic() - begun


async def leave(client: AsyncClient, model: str, keep: float | None) -> None:
    """
    Unload a model if a request says so. Answers that run go on; the prefixes of its prompts are kept for its return.

    Raises:
        SidecarError: If the daemon refuses it.
    """
    if keep == UNLOAD:
        await client.invalidate_model(model, weights=True, prefixes=False)
