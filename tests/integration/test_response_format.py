"""Forms of responses and reasoning over the real socket: what callers of both clients get."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest

from mlx_sidecar import AsyncClient, Client, Delta, Finished, InvalidArgument, Message
from tests.support.daemons import RunningDaemon
from tests.support.models import marked_model

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "code": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "code"],
    "additionalProperties": False,
}


async def test_clients_get_schema_json_and_seed_repeats_it(daemon: RunningDaemon, client: Client) -> None:
    """The model was never trained on JSON, and its answer still matches the schema."""
    options = {"json_schema": SCHEMA, "temperature": 2.0, "seed": 9, "max_tokens": 300}
    answer = client.complete("embedded", "The code of the blue box is 74.", **options)  # type: ignore[arg-type]
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    async with AsyncClient(daemon.socket) as other:
        again = await other.complete("embedded", "The code of the blue box is 74.", **options)  # type: ignore[arg-type]
    assert (again.text, again.token_ids, again.reason) == (answer.text, answer.token_ids, "stop")


def test_structured_and_free_requests_run_together(client: Client) -> None:
    """Concurrent requests with and without a response format get the same answers as alone."""

    def ask(number: int) -> str:
        form = [{}, {"json_schema": SCHEMA}, {"regex": "[a-z]{9}"}, {"json_object": True}][number % 4]
        text = "The code of the blue box is 74. The"
        return client.complete("embedded", text, max_tokens=40, temperature=1, seed=number, **form).text  # type: ignore[arg-type]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == [ask(number) for number in range(8)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"json_schema": {"not": {}}}, "response_format.json_schema"),
        ({"regex": "("}, "response_format.regex"),
        ({"grammar": "start: nobody"}, "response_format.grammar"),
        ({"regex": "a", "ignore_eos": True}, "stop.ignore_eos"),
    ],
)
def test_unsupported_response_format_names_its_field(client: Client, options: dict[str, object], field: str) -> None:
    """The daemon still serves after an unsupported response format."""
    with pytest.raises(InvalidArgument) as caught:
        client.complete("embedded", "Hello", **options)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert client.complete("embedded", "Hello", max_tokens=1).usage.completion_tokens == 1


def test_reasoning_streams_apart_from_json(client: Client, tmp_path: Path) -> None:
    """Reasoning and the structured answer are both streamed while they are generated."""
    model = str(marked_model(tmp_path, {"<think>": False, "</think>": False}, "{{ '<think>\n' }}"))
    chat = [Message("user", "Hello")]
    with client.generate(
        model, chat, json_schema=SCHEMA, max_tokens=400, temperature=1, seed=3, logit_bias={738: 3.0}
    ) as stream:
        events = list(stream)
    deltas = [event for event in events if isinstance(event, Delta)]
    answer = stream.result()
    assert isinstance(events[-1], Finished)
    assert answer.reason == "stop"
    assert "".join(delta.reasoning for delta in deltas) == answer.reasoning != ""
    jsonschema.validate(json.loads("".join(delta.text for delta in deltas)), SCHEMA)
