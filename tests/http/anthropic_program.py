"""Drives the door with Anthropic's SDK: `anthropic_program.py BASE_URL TOKEN UNIX_PATH MODEL`; prints what it saw."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
import httpx2

WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SYSTEM: Any = [  # of this run's own, so that no other run has put it into the cache
    {"type": "text", "text": f"{sys.argv[1:]} " + "word " * 200, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
]


def turn(content: Any, role: str = "user") -> Any:
    """Return a turn of a conversation."""
    return {"role": role, "content": content}


def streamed(client: anthropic.Anthropic, model: str) -> dict[str, Any]:
    """Stream a thinking, a text and a tool call, and read the message that the SDK makes of it."""
    with client.messages.stream(
        model=model, max_tokens=100, messages=[turn("Does it rain?")], tools=[WEATHER]
    ) as stream:
        events = list(stream)
        message = stream.get_final_message()
    raw = client.messages.create(
        model=model, max_tokens=100, messages=[turn("Does it rain?")], tools=[WEATHER], stream=True
    )
    return {
        "types": [event.type for event in raw],
        "json": "".join(event.partial_json for event in events if event.type == "input_json"),
        "message": message.model_dump(mode="json"),
    }


def loop(client: anthropic.Anthropic, model: str) -> list[dict[str, Any]]:
    """Answer a tool call, as agents do: with the content that came back."""
    history = [turn("Does it rain?")]
    answers = []
    for _ in range(2):
        answer = client.messages.create(
            model=model, max_tokens=100, system=SYSTEM, messages=history, tools=[WEATHER], thinking={"type": "adaptive"}
        )
        answers.append(answer.model_dump(mode="json"))
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "wet"}]}
            for block in answer.content
            if block.type == "tool_use"
        ]
        history += [turn(answer.content, "assistant"), turn(results)]
    return answers


def run_tools(client: anthropic.Anthropic, model: str, **more: Any) -> list[str | None]:
    """Return how each answer ends in the loop for tools that the SDK has; it begins with a thread of the server."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return "wet"

    runner = client.beta.messages.tool_runner(
        model=model, max_tokens=100, messages=[turn("Does it rain?")], tools=[weather], **more
    )
    if not more:
        return [message.stop_reason for message in runner]
    return [stream.get_final_message().stop_reason for stream in runner]


def refused(call: Any) -> dict[str, Any]:
    """Return the error of a call."""
    try:
        call()
    except anthropic.APIStatusError as error:
        return {"class": type(error).__name__, "status": error.status_code, "body": error.body}
    raise AssertionError("it was not refused")


def main() -> None:
    """Make all calls, and print what they brought."""
    base_url, token, path, model = sys.argv[1:]
    transport = httpx2.HTTPTransport(uds=path) if path else None
    http = httpx2.Client(transport=transport)
    with anthropic.Anthropic(base_url=base_url, api_key=token, http_client=http, max_retries=0) as client:

        def create(words: str, name: str = model, **fields: Any) -> anthropic.types.Message:
            return client.messages.create(**{"model": name, "max_tokens": 100, "messages": [turn(words)], **fields})

        two = {"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
        prefilled = [turn("Does it rain?"), turn("It is", "assistant")]
        counted: Any = {"model": model, "system": SYSTEM, "messages": [turn("Does it rain?")], "tools": [WEATHER]}
        image = {"type": "image", "source": {"type": "url", "url": "http://localhost/x.png"}}
        raw = client.messages.with_raw_response.create(
            model=model,
            max_tokens=100,
            messages=[turn("Shout")],
            tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}],
            output_config={"effort": "high"},
        )
        seen = {
            "models": [one.id for one in client.models.list()],
            "model": client.models.retrieve("embedded").model_dump(mode="json"),
            "streamed": streamed(client, model),
            "loop": loop(client, model),
            "run_tools": [run_tools(client, model), run_tools(client, model, stream=True)],
            "one_call": [block.type for block in create("Oslo too?", **two).content],
            "one_call_usage": create("Does it rain?", **two).usage.model_dump(),
            "both_calls": [block.type for block in create("Oslo too?", tools=[WEATHER]).content],
            "prefill": create("", messages=prefilled).model_dump(mode="json"),
            "stopped": create("Shout", stop_sequences=["HEY"]).model_dump(mode="json"),
            "short": create("Shout", max_tokens=1).stop_reason,
            "omitted": [
                block.model_dump()
                for block in create("Think", thinking={"type": "adaptive", "display": "omitted"}).content
            ],
            "budget": [
                block.model_dump()
                for block in create("Think", thinking={"type": "enabled", "budget_tokens": 1}).content
            ],
            "json": create(
                "Hello",
                "embedded",
                max_tokens=40,
                output_config={
                    "format": {
                        "type": "json_schema",
                        "schema": {
                            "type": "object",
                            "properties": {"a": {"type": "boolean"}},
                            "required": ["a"],
                            "additionalProperties": False,
                        },
                    }
                },
            )
            .content[0]
            .text,
            "counted": client.messages.count_tokens(**counted).input_tokens,
            "used": client.messages.create(max_tokens=1, **counted).usage.model_dump(mode="json"),
            "headers": dict(raw.headers),
            "id": raw.parse().id,
            "longer_than_context": create("Hi", "embedded", max_tokens=20_000).stop_reason,
            "no_model": refused(lambda: create("Hi", "no/such")),
            "image": refused(lambda: create("", messages=[turn([image])])),
            "wrong_type": refused(lambda: create("Hi", stop_sequences="x")),
            "wrong_call": refused(lambda: create("Hi", tools=[WEATHER], tool_choice={"type": "tool", "name": "x"})),
            "long_prompt": refused(lambda: create("word " * 5000, "embedded")),
            "no_token": refused(
                lambda: client.with_options(api_key="wrong").messages.create(
                    model=model, max_tokens=1, messages=[turn("Hi")]
                )
            )
            if not path
            else None,
        }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
