"""Drives the door with helpers of SDKs: `helpers_program.py BASE_URL TOKEN UNIX_PATH MODEL`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

import anthropic
import httpx2
import openai
import pydantic
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner

PARAMETERS: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
AT_ONCE = 50
"""Requests of one client that are open together."""


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: Literal["Bergen", "Oslo"]


class Form(pydantic.BaseModel):
    """What an answer is parsed as."""

    a: bool


TOOL: Any = openai.pydantic_function_tool(Weather, name="weather")


def ask(words: str) -> list[Any]:
    """Return a conversation of one turn."""
    return [{"role": "user", "content": words}]


def streamed(client: openai.OpenAI, model: str, **more: Any) -> dict[str, Any]:
    """Return what the SDK makes of the chunks of an answer, which calls are parsed, and which events it raises."""
    asked: Any = {"model": model, "messages": ask("Does it rain?"), "tools": [TOOL], "max_tokens": 200, **more}
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    (choice,) = final.choices
    return {
        "events": sorted(set(events)),
        "text": choice.message.content,
        "cities": [call.function.parsed_arguments.city for call in choice.message.tool_calls or ()],
        "reason": choice.finish_reason,
        "used": final.usage is not None and final.usage.completion_tokens > 0,
    }


def parsed(client: openai.OpenAI) -> dict[str, Any]:
    """Return answers as objects of a class: whole, as a stream, and one that is cut short."""
    asked: Any = {"model": "embedded", "messages": ask("Hello"), "response_format": Form, "max_tokens": 60}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    try:
        cut = client.chat.completions.parse(**{**asked, "max_tokens": 2}).choices[0].finish_reason
    except openai.LengthFinishReasonError as error:
        cut = type(error).__name__
    answers = [client.chat.completions.parse(**asked), final]
    return {"types": [type(one.choices[0].message.parsed).__name__ for one in answers], "cut": cut}


def scored(client: openai.OpenAI) -> list[Any]:
    """Return text and scored tokens of each sample that a stop string ends, whole and as a stream."""
    asked: Any = {"model": "embedded", "messages": ask("Hello"), "n": 3, "temperature": 3, "seed": 5}
    asked |= {"max_tokens": 20, "stop": ["e"], "logprobs": True}
    whole = client.chat.completions.create(**asked).choices
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices
    return [
        [(one.message.content, [score.token for score in one.logprobs.content] if one.logprobs else []) for one in some]
        for some in (whole, final)
    ]


def run_tools(client: openai.OpenAI, model: str, **more: Any) -> str:
    """Return the last answer of OpenAI's loop for tools, which checks each item and event of the server."""
    tool: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    runner = ResponsesToolRunner(functions=[RegisteredFunction(tool, lambda _: "wet", independent=True)])
    return runner.run(client, {"model": model, "input": "Does it rain?"}, max_steps=3, **more).output_text


async def at_once(client: openai.AsyncOpenAI) -> dict[str, Any]:
    """Ask many things at once, half of which are given up, and everything once more as streams."""

    async def whole(number: int) -> str:
        answer = await client.chat.completions.create(
            model="embedded", messages=ask(f"Count {number}"), max_tokens=6, temperature=0
        )
        return answer.choices[0].message.content or ""

    async def pieces(number: int) -> str:
        chunks = await client.chat.completions.create(
            model="embedded", messages=ask(f"Count {number}"), max_tokens=6, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    given_up = [asyncio.create_task(whole(number)) for number in range(AT_ONCE)]
    await asyncio.wait(given_up, return_when=asyncio.FIRST_COMPLETED)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    texts = await asyncio.gather(*map(whole, range(AT_ONCE)))
    return {"count": len(texts), "same": texts == await asyncio.gather(*map(pieces, range(AT_ONCE)))}


def left(client: openai.OpenAI) -> dict[str, Any]:
    """Leave a stream in its middle, run into a time limit, and ask once more on the same connections."""
    asked: Any = {"model": "embedded", "messages": ask("Tell me"), "max_tokens": 2000, "logit_bias": {"2": -100}}
    with client.chat.completions.create(**asked, stream=True) as stream:
        first = next(iter(stream)).choices[0].delta.role
    try:
        client.with_options(timeout=0.01).chat.completions.create(**asked)
        late = ""
    except openai.APITimeoutError as error:
        late = type(error).__name__
    after = client.chat.completions.create(**{**asked, "max_tokens": 2}).choices[0].finish_reason
    return {"first": first, "late": late, "after": after}


def of_anthropic(client: anthropic.Anthropic) -> dict[str, Any]:
    """Return what Anthropic's SDK parses, whole and as a stream, and the pieces of a text."""
    asked: Any = {"model": "embedded", "max_tokens": 60, "messages": ask("Hello")}
    with client.messages.stream(**asked, output_format=Form) as stream:
        final = stream.get_final_message()
    with client.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        text = stream.get_final_text()
    answers = [client.messages.parse(**asked, output_format=Form), final]
    return {"types": [type(one.parsed_output).__name__ for one in answers], "whole": "".join(pieces) == text != ""}


async def asynchronous(base_url: str, token: str, path: str) -> dict[str, Any]:
    """Return what the asynchronous client sees."""
    http = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=path) if path else None)
    async with openai.AsyncOpenAI(base_url=base_url, api_key=token, http_client=http, max_retries=0) as client:
        return await at_once(client)


def main() -> None:
    """Make all calls, and print what they brought."""
    base_url, token, path, model = sys.argv[1:]
    clients: list[Any] = []
    for kind, url in ((openai.OpenAI, base_url), (anthropic.Anthropic, base_url.removesuffix("/v1"))):
        http = httpx2.Client(transport=httpx2.HTTPTransport(uds=path) if path else None)
        clients.append(kind(base_url=url, api_key=token, http_client=http, max_retries=0))
    client, other = clients
    named = {"type": "function", "function": {"name": "weather"}}
    with client, other:
        seen = {
            "streamed": streamed(client, model),
            "forced": [streamed(client, model, tool_choice=choice) for choice in ("required", named)],
            "parsed": parsed(client),
            "scored": scored(client),
            "run_tools": [run_tools(client, model, **more) for more in ({}, {"stream": True, "eager": True})],
            "left": left(client),
            "anthropic": of_anthropic(other),
        }
    seen["at_once"] = asyncio.run(asynchronous(base_url, token, path))
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
