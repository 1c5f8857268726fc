"""Drives OpenAI's responses with its SDK: `python responses_program.py BASE_URL TOKEN UNIX_PATH MODEL`."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx2
import openai
import pydantic

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
LONG = "A long text that both turns have. " * 30


class Form(pydantic.BaseModel):
    """What an answer is parsed as."""

    a: bool


def streamed(client: openai.OpenAI, model: str, **more: Any) -> dict[str, Any]:
    """Stream a reasoning, a text and a tool call, with the SDK's own check of the order of events."""
    with client.responses.stream(model=model, input="Does it rain?", tools=[TOOL], **more) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    return {
        "types": [one.type for one in seen],
        "numbers": [one.sequence_number for one in seen],
        "text": "".join(one.delta for one in seen if one.type == "response.output_text.delta"),
        "arguments": "".join(one.delta for one in seen if one.type == "response.function_call_arguments.delta"),
        "output": [one.model_dump(exclude={"parsed_arguments"}) for one in final.output],
        "status": final.status,
        "usage": final.usage and final.usage.model_dump(),
        "kept": [one.model_dump() for one in client.responses.retrieve(final.id).output],
    }


CLOCK: Any = {
    **TOOL,
    "name": "clock",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"enum": ["utc"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}


def allowed(client: openai.OpenAI, model: str, name: str) -> dict[str, Any]:
    """Return the calls of an answer that may call one tool, and its choice as the server gives it back."""
    some: Any = [{"type": "function", "name": name}]
    answer = client.responses.create(
        model=model,
        input="Does it rain?",
        tools=[TOOL, CLOCK],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": some},
        max_output_tokens=200,
    )
    calls = [one.name for one in answer.output if one.type == "function_call"]
    return {"calls": calls, "choice": answer.model_dump()["tool_choice"]}


def either(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Return text and calls of an answer that is calls or JSON."""
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": Form.model_json_schema()}}
    answer = client.responses.create(
        model=model, input="Does it rain?", tools=[CLOCK], text=form, max_output_tokens=200
    )
    return {"text": answer.output_text, "calls": [one.name for one in answer.output if one.type == "function_call"]}


def with_previous(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Answer a tool call, the conversation kept by the server."""
    first = client.responses.create(model=model, input=f"{LONG}Does it rain?", tools=[TOOL])
    (call,) = [one for one in first.output if one.type == "function_call"]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
    second = client.responses.create(model=model, input=[output], tools=[TOOL], previous_response_id=first.id)
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    return {**_turns(first, second), "items": [one.type for one in items]}


def counts(client: openai.OpenAI, model: str) -> dict[str, Any]:
    """Count a conversation before it is answered, and one that goes on from its answer."""
    count = client.responses.input_tokens.count
    prompt: Any = {"model": model, "instructions": "Be brief.", "input": "Does it rain?", "tools": [TOOL]}
    wish: Any = {"parallel_tool_calls": False, "truncation": "disabled", "reasoning": {"effort": "high"}}
    first = client.responses.create(**prompt)
    (call,) = [one for one in first.output if one.type == "function_call"]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
    turn: Any = {"model": model, "previous_response_id": first.id, "input": [output], "tools": [TOOL]}
    return {
        "object": count(**prompt).object,
        "counted": [count(**prompt, **wish).input_tokens, count(**turn).input_tokens],
        "used": [one.usage.input_tokens for one in (first, client.responses.create(**turn)) if one.usage],
        "without_tools": count(model=model, input="Does it rain?").input_tokens,
        "no_input": refused(lambda: count(model=model)),
    }


def with_items(client: openai.OpenAI, model: str, **more: Any) -> dict[str, Any]:
    """Answer a tool call, the conversation kept by the client: with the items that came back."""
    history: list[Any] = [{"role": "user", "content": f"{LONG}Does it rain?"}]
    first = client.responses.create(model=model, input=history, tools=[TOOL], store=False, **more)
    history += [one.model_dump() for one in first.output]
    (call,) = [one for one in first.output if one.type == "function_call"]
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "wet"}]
    second = client.responses.create(model=model, input=history, tools=[TOOL], store=False, **more)
    return {**_turns(first, second), "reasoning": [one.model_dump() for one in first.output if one.type == "reasoning"]}


def with_references(client: openai.OpenAI, model: str) -> str:
    """Answer a tool call, with references to the items of the answer."""
    first = client.responses.create(model=model, input="Does it rain?", tools=[TOOL])
    (call,) = [one for one in first.output if one.type == "function_call"]
    history: list[Any] = [
        {"role": "user", "content": "Does it rain?"},
        *({"type": "item_reference", "id": one.id} for one in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "wet"},
    ]
    return client.responses.create(model=model, input=history, tools=[TOOL]).output_text


def _turns(first: Any, second: Any) -> dict[str, Any]:
    return {
        "text": second.output_text,
        "status": second.status,
        "prompt": first.usage.input_tokens,
        "cached": second.usage.input_tokens_details.cached_tokens,
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
        create = client.responses.create
        parsed = client.responses.parse(model="embedded", input="Hello", text_format=Form, max_output_tokens=40)
        short = create(model="embedded", input="Hello", max_output_tokens=3, include=["message.output_text.logprobs"])
        gone = create(model="embedded", input="Hello", max_output_tokens=3)
        client.responses.delete(gone.id)
        seen = {
            "streamed": streamed(client, model),
            "summary": streamed(client, model, reasoning={"summary": "auto", "effort": "high"}),
            "with_previous": with_previous(client, model),
            "counts": counts(client, model),
            "with_items": with_items(client, model),
            "with_encrypted": with_items(
                client, model, include=["reasoning.encrypted_content"], reasoning={"summary": "auto"}
            ),
            "with_references": with_references(client, model),
            "parsed": parsed.output_parsed is not None and parsed.output_parsed.a in (True, False),
            "allowed": allowed(client, model, "clock"),
            "unknown_allowed": refused(lambda: allowed(client, model, "hammer")),
            "either": either(client, model),
            "both_calls": [one.type for one in create(model=model, input="Oslo too?", tools=[TOOL]).output],
            "one_call": [
                one.type
                for one in create(model=model, input="Oslo too?", tools=[TOOL], parallel_tool_calls=False).output
            ],
            "one_call_usage": create(
                model=model, input="Does it rain?", tools=[TOOL], parallel_tool_calls=False
            ).usage.model_dump(),
            "short": short.model_dump(include={"status", "incomplete_details", "output"}),
            "no_model": refused(lambda: create(model="no/such", input="Hi")),
            "no_previous": refused(lambda: create(model="embedded", input="Hi", previous_response_id="resp_1")),
            "no_response": refused(lambda: client.responses.retrieve(gone.id)),
            "background": refused(lambda: create(model="embedded", input="Hi", background=True)),
            "cancel": refused(lambda: client.responses.cancel(short.id)),
            "image": refused(
                lambda: create(
                    model="embedded",
                    input=[{"role": "user", "content": [{"type": "input_image", "detail": "auto", "image_url": "x"}]}],
                )
            ),
            "too_hot": refused(lambda: create(model="embedded", input="Hi", temperature=200)),
        }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
