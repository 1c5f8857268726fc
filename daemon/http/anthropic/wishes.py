"""
Parameters that clients send to any model although they have no effect on some: the call is repeated without them.

A client's effort, or its limit of thinking, means nothing to a model that does not think, or has a template without
them. The daemon refuses what has no effect. Here the call is repeated without it, and the answer tells what was left
out. Values are checked before: what the daemon still refuses is what the model cannot do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

from daemon.http import generation
from daemon.http.generation import Ask
from mlx_sidecar import AsyncClient, GenerateEvent, GenerateOptions, InvalidArgument, Started


@dataclass(frozen=True, slots=True)
class _Wish:
    option: str
    parameter: str
    why: str


_WISHES: Mapping[str | None, _Wish] = {
    "chat.reasoning_effort": _Wish("reasoning_effort", "output_config.effort", "the model's template reads none"),
    "chat.enable_thinking": _Wish("enable_thinking", "thinking.type", "the model's template reads none"),
    "reasoning_budget": _Wish("reasoning_budget", "thinking.budget_tokens", "the model has no marks of thinking"),
    "sampling.top_p": _Wish("top_p", "top_p", "the model's answers are greedy"),
    "sampling.top_k": _Wish("top_k", "top_k", "the model's answers are greedy"),
}
"""By the field that the daemon names."""


async def events(client: AsyncClient, ask: Ask) -> AsyncGenerator[GenerateEvent]:
    """
    Yield the events of a generation; what was left out is among the warnings of the first.

    Raises:
        SidecarError: If the call failed.
    """
    left: tuple[str, ...] = ()
    while True:
        try:
            async with aclosing(generation.events(client, ask)) as seen:
                async for event in seen:
                    yield replace(event, warnings=(*left, *event.warnings)) if isinstance(event, Started) else event
        except InvalidArgument as error:
            ask, text = _without(ask, error)
            left = (*left, text)
        else:
            return


async def count(client: AsyncClient, ask: Ask) -> tuple[int, list[str]]:
    """
    Return the number of tokens of a prompt, and what was left out.

    Raises:
        SidecarError: If the call failed.
    """
    left: list[str] = []
    while True:
        try:
            return await generation.count(client, ask), left
        except InvalidArgument as error:
            ask, text = _without(ask, error)
            left.append(text)


def _without(ask: Ask, error: InvalidArgument) -> tuple[Ask, str]:
    """
    Return a call without the option that was refused, and what to tell of it.

    Raises:
        InvalidArgument: If it is no wish.
    """
    wish = _WISHES.get(error.field)
    if wish is None or ask.options.get(wish.option) is None:
        raise error
    rest = {name: value for name, value in ask.options.items() if name != wish.option}
    return replace(ask, options=cast("GenerateOptions", rest)), f"{wish.parameter} is left out: {wish.why}"
