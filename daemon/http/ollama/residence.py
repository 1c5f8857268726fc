"""How long a model stays in memory, as `keep_alive` of a request says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import structlog

from daemon.http.ollama.shared_types import FOREVER
from daemon.shared.log_fields import cause
from mlx_sidecar import AsyncClient, LoadOptions, SidecarError

UNLOAD = 0.0
"""The duration that unloads a model after the answer."""

log = structlog.get_logger()


@asynccontextmanager
async def resident(client: AsyncClient, model: str, keep: float | None) -> AsyncIterator[float]:
    """
    Have a model in memory for the work of a block, as `settle` does, and unload it behind the block with UNLOAD.

    A block that is cut short, as its client went away, ends as well; a call that the daemon refused changed nothing.
    The answer is there by then: a daemon that cannot unload, such as one that lost its engine, takes nothing of it.

    Raises:
        SidecarError: If the model cannot be loaded.
    """
    loading = await settle(client, model, keep)
    refused = False
    try:
        yield loading
    except SidecarError:
        refused = True
        raise
    finally:
        if keep == UNLOAD and not refused:
            try:
                await leave(client, model)
            except SidecarError as error:
                log.warning("http_unload_failed", model=model, error=cause(error))


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


async def leave(client: AsyncClient, model: str) -> None:
    """
    Unload a model. Answers that run go on; the prefixes of its prompts are kept for its return.

    Raises:
        SidecarError: If the daemon refuses it.
    """
    await client.invalidate_model(model, weights=True, prefixes=False)
