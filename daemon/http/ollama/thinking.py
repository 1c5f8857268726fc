"""Generations for clients that turn reasoning off in each request, whatever the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from daemon.http.generation import Ask, events
from mlx_sidecar import AsyncClient, GenerateEvent, GenerateOptions, InvalidArgument


async def thought_events(client: AsyncClient, ask: Ask) -> AsyncGenerator[GenerateEvent]:
    """
    Yield the events of a generation, see `generation.events`.

    Reasoning that is turned off for a model without a switch is no fault here: most of these models never reason. The
    daemon refuses the option before it does anything else, and is asked again without it.

    Raises:
        SidecarError: If the call failed.
    """
    try:
        async with aclosing(events(client, ask)) as seen:
            async for event in seen:
                yield event
            return
    except InvalidArgument as error:
        if error.field != "chat.enable_thinking" or ask.options.get("enable_thinking") is not False:
            raise
    options = {name: value for name, value in ask.options.items() if name != "enable_thinking"}
    async with aclosing(events(client, replace(ask, options=cast("GenerateOptions", options)))) as seen:
        async for event in seen:
            yield event
