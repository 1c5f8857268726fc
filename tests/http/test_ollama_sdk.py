"""Ollama's own Python SDK on the door, over a port and over the Unix socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http import raw
from tests.http.conftest import Door
from tests.http.sdks import results
from tests.support.models import embedding_model
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDK saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("models")
    model = scripted_model(folder / "calls", ANSWERS, TEMPLATE)
    vectors = embedding_model(folder / "vectors", base={"max_position_embeddings": 64})
    host = door.base_url.removesuffix("/v1")
    return results("ollama_program.py", host, door.token, door.unix, str(model), str(vectors))


def test_models_are_listed_and_shown(seen: dict[str, Any]) -> None:
    """With what clients look for: capabilities, and the context under the architecture's name."""
    assert "embedded" in seen["models"]
    assert set(seen["digests"]) == {64}
    assert seen["capabilities"][0] == "completion"
    kind = seen["info"]["general.architecture"]
    assert seen["info"][f"{kind}.context_length"] > 0
    assert seen["embeds"] == ["embedding"]


def test_stream_has_thinking_text_and_call(seen: dict[str, Any]) -> None:
    """As pieces of one answer; arguments are an object; the figures are in the last piece."""
    streamed = seen["streamed"]
    assert len(streamed["models"]) == 1
    assert streamed["roles"] == ["assistant"]
    assert streamed["thinking"] == "Where? In Bergen."
    assert streamed["text"] == "I look.\n"
    assert [call["function"] for call in streamed["calls"]] == [{"name": "weather", "arguments": {"city": "Bergen"}}]
    assert streamed["done"] == [False] * (len(streamed["done"]) - 1) + [True]
    last = streamed["last"]
    assert last["done_reason"] == "stop"
    assert last["prompt_eval_count"] > 0
    assert last["eval_count"] > 0
    assert last["total_duration"] >= last["eval_duration"] > 0


def test_tool_result_finds_its_call_by_name(seen: dict[str, Any]) -> None:
    """The SDK drops the ids of calls, and the template needs them to answer."""
    assert seen["second_turn"] == {"thinking": "Where? In Bergen.", "first": "stop", "text": "It rains."}


def test_format_is_kept_to(seen: dict[str, Any]) -> None:
    """A schema."""
    assert set(json.loads(seen["json"])) == {"a"}


def test_thinking_is_off_for_models_without_it(seen: dict[str, Any]) -> None:
    """Some clients turn it off in each request."""
    assert seen["quiet"] in ("stop", "length")


def test_generate_continues_and_answers(seen: dict[str, Any]) -> None:
    """The stream has the same text as the whole answer; each token has its score."""
    assert seen["system"] in ("stop", "length")
    assert seen["plain"]
    assert seen["plain_stream"] == seen["plain"]
    assert len(seen["scores"]) == 4
    assert {count for _, count in seen["scores"]} == {2}


def test_texts_become_vectors(seen: dict[str, Any]) -> None:
    """Of the wanted width; a text that is too long is cut, unless the request says otherwise."""
    assert seen["vectors"] == [4, 4]
    assert seen["embed_count"] > 0
    assert seen["cut"] == 1
    assert (seen["not_cut"]["status"], seen["not_cut"]["error"][:8]) == (400, "input[0]")
    assert seen["vector"] > 4


def test_keep_alive_pins_and_unloads(seen: dict[str, Any]) -> None:
    """By a request without words, and with an answer."""
    assert seen["residence"] == {
        "pinned": "load",
        "in_memory": [True],
        "unloaded": "unload",
        "gone": [],
        "answered": "length",
        "back": [False],
        "gone_again": [],
    }


def test_model_that_is_here_is_pulled_at_once(seen: dict[str, Any]) -> None:
    """Its last line is what clients wait for."""
    assert seen["pulled"][-1] == "success"


@pytest.mark.parametrize(
    ("case", "status", "word"),
    [
        ("no_model", 404, "no/such"),
        ("no_model_streamed", 404, "no/such"),
        ("too_hot", 400, "options.temperature"),
        ("think", 400, "think has no effect"),
        ("think_high", 400, "think is not read"),
        ("mirostat", 400, "options.mirostat"),
        ("image", 400, "messages[0].images"),
        ("suffix", 400, "suffix"),
        ("context", 400, "context"),
        ("delete", 501, "mlx-sidecar rm"),
        ("copy", 501, "[aliases]"),
        ("create", 501, "mlx_lm.convert"),
        ("push", 501, "hf upload"),
        ("pull", 404, "no-such-name"),
        ("show", 404, "no/such"),
        ("embed", 400, "pooling"),
    ],
)
def test_sdk_raises_what_is_refused(seen: dict[str, Any], case: str, status: int, word: str) -> None:
    """With the parameter's own name, or what to do instead."""
    assert seen[case]["status"] == status, seen[case]
    assert word in seen[case]["error"]


def test_clients_find_an_ollama_at_the_root(port_door: Door) -> None:
    """Some look for these words, some for a version that is new enough."""
    assert raw.call(port_door, "GET", "/").body == b"Ollama is running"
    assert raw.call(port_door, "GET", "/", authorization=None).status == 401
    assert raw.call(port_door, "GET", "/api/version").json.keys() == {"version"}
    assert raw.call(port_door, "HEAD", "/api/version").status == 200


def test_stream_is_a_json_object_on_each_line(unix_door: Door) -> None:
    """Unless `stream` is false; an unknown path has the API's form of errors."""
    body = {"model": "embedded:latest", "messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 3}}
    found = raw.call(unix_door, "POST", "/api/chat", body)
    assert found.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in found.body.splitlines()]
    assert {line["model"] for line in lines} == {"embedded:latest"}
    assert [line["done"] for line in lines][-1] is True
    assert raw.call(unix_door, "POST", "/api/nothing", {}).json.keys() == {"error"}
    assert "options.top" in raw.call(unix_door, "POST", "/api/chat", {**body, "options": {"top": 1}}).json["error"]
