"""Drives the door with OpenAI's SDK: `python openai_program.py BASE_URL TOKEN UNIX_PATH MODEL`; prints what it saw."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx2
import openai

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def ask(words: str) -> list[Any]:
    """Return a conversation of one turn."""
    return [{"role": "user", "content": words}]


def streamed(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Stream a reasoning, a text and a tool call."""
    chunks = client.chat.completions.create(
        model=model,
        messages=ask("Does it rain?"),
        tools=[TOOL],
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces = list(chunks)
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    last = pieces[-1]
    assert last.usage is not None
    return {
        "ids": len({piece.id for piece in pieces}),
        "role": deltas[0].role,
        "reasoning": "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        "text": "".join(delta.content or "" for delta in deltas),
        "names": [call.function.name for call in calls if call.function and call.function.name],
        "arguments": "".join((call.function.arguments or "") for call in calls if call.function),
        "call_ids": [call.id for call in calls if call.id],
        "reasons": [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1:],
        "usage": last.usage.model_dump(),
    }


CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["utc"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def allowed(client: openai.OpenAI, model: str, mode: str, name: str = "clock") -> dict[str, Any]:
    """Return the calls of an answer that would call the other tool if it might, and the tokens of its prompt."""
    answer = client.chat.completions.create(
        model=model,
        messages=ask("Does it rain?"),
        tools=[TOOL, CLOCK],
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": [{"type": "function", "function": {"name": name}}]},
        },  # type: ignore[call-overload]
        temperature=1,
        seed=7,
        logit_bias={"2": 50},
        max_tokens=200,
    )
    calls = answer.choices[0].message.tool_calls or ()
    return {"calls": [(one.function.name, one.function.arguments) for one in calls], "usage": answer.usage.model_dump()}


FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "n",
        "schema": {
            "type": "object",
            "properties": {"a": {"type": "boolean"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


def either(client: openai.OpenAI, model: str, choice: Any) -> list[Any]:
    """Return content and calls of answers that are calls or JSON."""
    answers = [
        client.chat.completions.create(
            model=model,
            messages=ask("Does it rain?"),
            tools=[CLOCK],
            tool_choice=choice,
            response_format=FORM,
            temperature=1,
            seed=seed,
            logit_bias={"2": 50},
            max_tokens=200,
        )
        for seed in range(3)
    ]
    messages = [one.choices[0].message for one in answers]
    return [(one.content, [call.function.name for call in one.tool_calls or ()]) for one in messages]


def second_turn(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Answer a tool call, as agents do: with the message that came back."""
    first = client.chat.completions.create(model=model, messages=ask("Does it rain?"), tools=[TOOL])
    message = first.choices[0].message
    assert message.tool_calls
    history = [
        *ask("Does it rain?"),
        message.model_dump(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "wet"},
    ]
    second = client.chat.completions.create(model=model, messages=history, tools=[TOOL])
    return {
        "first_reason": first.choices[0].finish_reason,
        "reasoning": getattr(message, "reasoning_content", None),
        "text": second.choices[0].message.content,
        "reason": second.choices[0].finish_reason,
    }


def samples(client: openai.OpenAI) -> list[Any]:
    """Return the texts of several answers, whole and as a stream."""
    more: Any = {"model": "embedded", "messages": ask("Hello"), "n": 3, "temperature": 5, "seed": 7, "max_tokens": 5}
    whole = client.chat.completions.create(**more)
    texts = [""] * 3
    for piece in client.chat.completions.create(**more, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].delta.content or ""
    return [[choice.message.content for choice in whole.choices], texts]


def scores(client: openai.OpenAI) -> dict[str, Any]:
    """Return the scores of an answer and of a prompt."""
    chat = client.chat.completions.create(
        model="embedded", messages=ask("Hello"), logprobs=True, top_logprobs=2, max_tokens=4, temperature=0
    )
    more: Any = {"model": "embedded", "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}
    text = client.completions.create(**more, prompt="One two three four", max_tokens=1)
    alone = client.completions.create(**more, prompt=[5, 6, 7], max_tokens=0)
    echo = client.completions.create(model="embedded", prompt=[5, 6, 7], max_tokens=1, echo=True, stream=True)
    content = chat.choices[0].logprobs.content
    return {
        "tokens": [score.token for score in content],
        "text": chat.choices[0].message.content,
        "best": [score.logprob == max(one.logprob for one in score.top_logprobs) for score in content],
        "prompt": text.choices[0].logprobs.model_dump(),
        "alone": alone.choices[0].model_dump(),
        "echo": next(echo).choices[0].text,
    }


def refused(call: Any) -> dict[str, Any]:
    """Return the error of a call."""
    try:
        call()
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "status": error.status_code, "body": error.body}
    raise AssertionError("it was not refused")


def main() -> None:
    """Make all calls, and print what they brought."""
    base_url, token, path, model = sys.argv[1:]
    transport = httpx2.HTTPTransport(uds=path) if path else None
    http = httpx2.Client(transport=transport)
    with openai.OpenAI(base_url=base_url, api_key=token, http_client=http, max_retries=0) as client:
        create = client.chat.completions.create
        one_call = create(model=model, messages=ask("Oslo too?"), tools=[TOOL], parallel_tool_calls=False)
        forced = create(
            model="embedded",
            messages=ask("Hello"),
            response_format=FORM,
            max_tokens=40,
        )
        plain = client.completions.create(model="embedded", prompt=["One", "Two"], max_tokens=4, echo=True)
        pieces = list(client.completions.create(model="embedded", prompt="One", max_tokens=4, stream=True))
        twice = [create(model="embedded", messages=ask("word " * 200), max_tokens=2).usage for _ in range(2)]
        seen = {
            "models": [one.id for one in client.models.list()],
            "headers": dict(
                client.chat.completions.with_raw_response.create(
                    model="embedded", messages=ask("Hi"), max_tokens=1, tools=[{"type": "web_search"}]
                ).headers
            ),
            "model": client.models.retrieve("embedded").id,
            "streamed": streamed(client, model),
            "second_turn": second_turn(client, model),
            "allowed": {mode: allowed(client, model, mode) for mode in ("auto", "required")},
            "others_allowed": allowed(client, model, "auto", "weather"),
            "unknown_allowed": refused(lambda: allowed(client, model, "auto", "hammer")),
            "either": either(client, model, "auto"),
            "calls_alone": either(client, model, "required"),
            "both_calls": len(
                create(model=model, messages=ask("Oslo too?"), tools=[TOOL]).choices[0].message.tool_calls or ()
            ),
            "one_call": len(one_call.choices[0].message.tool_calls or ()),
            "one_call_usage": create(
                model=model, messages=ask("Does it rain?"), tools=[TOOL], parallel_tool_calls=False
            ).usage.model_dump(),
            "json": forced.choices[0].message.content,
            "plain": [choice.text for choice in plain.choices],
            "plain_stream": "".join(piece.choices[0].text for piece in pieces),
            "cached": [one.prompt_tokens_details.cached_tokens for one in twice if one and one.prompt_tokens_details],
            "longer_than_context": create(model="embedded", messages=ask("Hi"), max_tokens=10**6)
            .choices[0]
            .finish_reason,
            "no_model": refused(lambda: create(model="no/such", messages=ask("Hi"))),
            "too_hot": refused(lambda: create(model="embedded", messages=ask("Hi"), temperature=200)),
            "stored": refused(lambda: create(model="embedded", messages=ask("Hi"), store=True)),
            "samples": samples(client),
            "scores": scores(client),
            "seed": create(model="embedded", messages=ask("Hi"), seed=7, max_tokens=3).choices[0].finish_reason,
            "wrong_type": refused(lambda: create(model="embedded", messages=ask("Hi"), seed="7")),
            "image": refused(
                lambda: create(
                    model="embedded",
                    messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                )
            ),
            "embeddings": refused(lambda: client.embeddings.create(model="embedded", input="x")),
        }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
