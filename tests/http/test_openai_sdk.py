"""OpenAI's own Python SDK on the door, over a port and over the Unix socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.conftest import Door
from tests.http.sdks import results
from tests.support.scripted_model import scripted_model
from tests.support.tool_conversation import ANSWERS, TEMPLATE

REASONED = 4
"""Tokens of the reasoning of an answer with a call."""


@pytest.fixture(name="seen", scope="module", params=["unix_door", "port_door"])
def _seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the SDK saw of a door."""
    door: Door = request.getfixturevalue(request.param)
    model = scripted_model(tmp_path_factory.mktemp("models") / "calls", ANSWERS, TEMPLATE)
    return results("openai_program.py", door.base_url, door.token, door.unix, str(model))


def test_openai_sdk_lists_and_retrieves_models(seen: dict[str, Any]) -> None:
    """The embedded model is always there."""
    assert "embedded" in seen["models"]
    assert seen["model"] == "embedded"


def test_openai_sdk_streams_reasoning_text_and_call(seen: dict[str, Any]) -> None:
    """As chunks of one answer, with its usage at the end."""
    streamed = seen["streamed"]
    assert (streamed["ids"], streamed["role"]) == (1, "assistant")
    assert streamed["reasoning"] == "Where? In Bergen."
    assert streamed["text"] == "I look.\n"
    assert streamed["names"] == ["weather"]
    assert json.loads(streamed["arguments"]) == {"city": "Bergen"}
    assert len(streamed["call_ids"]) == 1
    assert streamed["reasons"] == ["tool_calls"]
    usage = streamed["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_openai_sdk_answers_a_tool_call(seen: dict[str, Any]) -> None:
    """The message that came back is accepted as it is, nulls included."""
    assert seen["second_turn"]["first_reason"] == "tool_calls"
    assert seen["second_turn"]["reasoning"] == "Where? In Bergen."
    assert seen["second_turn"]["text"] == "It rains."
    assert seen["second_turn"]["reason"] == "stop"


def test_openai_sdk_can_ask_for_one_call(seen: dict[str, Any]) -> None:
    """`parallel_tool_calls` false ends an answer that would have two calls."""
    assert (seen["both_calls"], seen["one_call"]) == (2, 1)
    assert seen["one_call_usage"]["completion_tokens_details"]["reasoning_tokens"] == REASONED


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_openai_sdk_can_allow_some_tools(seen: dict[str, Any], mode: str) -> None:
    """The scripted model would call the other tool. The prompt is the same whatever is allowed."""
    found, others = seen["allowed"][mode], seen["others_allowed"]
    assert {(name, json.loads(arguments)["zone"]) for name, arguments in found["calls"]} == {("clock", "utc")}
    assert {name for name, _ in others["calls"]} == {"weather"}
    assert found["usage"]["prompt_tokens"] == others["usage"]["prompt_tokens"]


def test_openai_sdk_gets_json_of_a_schema(seen: dict[str, Any]) -> None:
    """Whatever the model would rather write."""
    assert type(json.loads(seen["json"])["a"]) is bool


def test_openai_sdk_gets_calls_or_json(seen: dict[str, Any]) -> None:
    """With tools beside a schema. Where calls are required, the schema has nothing to say."""
    for content, calls in seen["either"]:
        if calls:
            assert (set(calls), (content or "").strip()) == ({"clock"}, "")
        else:
            assert type(json.loads(content)["a"]) is bool
    assert all(calls for _, calls in seen["calls_alone"])


def test_openai_sdk_completes_plain_prompts(seen: dict[str, Any]) -> None:
    """Several at once, in their order, with an echo; and one as a stream."""
    first, second = seen["plain"]
    assert first.startswith("One")
    assert second.startswith("Two")
    assert first == "One" + seen["plain_stream"]


def test_openai_sdk_sees_cached_tokens(seen: dict[str, Any]) -> None:
    """The second time nearly the whole prompt is reused."""
    _, second = seen["cached"]
    assert second >= 192


def test_max_tokens_is_lowered_to_the_context(seen: dict[str, Any]) -> None:
    """Agents ask for more than a small model has."""
    assert seen["longer_than_context"] in ("stop", "length")


def test_answers_tell_their_id_and_what_was_left_out(seen: dict[str, Any]) -> None:
    """In headers, which SDKs hand on."""
    assert seen["headers"]["x-request-id"].startswith("http-")
    assert seen["headers"]["x-mlx-sidecar-note"] == "tools[0] is left out: only functions"
    assert "server" not in seen["headers"]


def test_openai_sdk_raises_the_errors_of_its_table(seen: dict[str, Any]) -> None:
    """Each with the parameter under the API's own name."""
    assert (seen["no_model"]["class"], seen["no_model"]["status"]) == ("NotFoundError", 404)
    for name, param in (
        ("too_hot", "temperature"),
        ("stored", "store"),
        ("wrong_type", "seed"),
        ("unknown_allowed", "tool_choice.allowed_tools.tools[0].function.name"),
    ):
        assert (seen[name]["class"], seen[name]["status"]) == ("BadRequestError", 400)
        assert seen[name]["body"]["param"] == param
        assert param in seen[name]["body"]["message"]
    assert seen["image"]["body"]["param"] == "messages[0].content[0].type"
    assert seen["embeddings"]["status"] == 400  # the embedded model does not say how its states are pooled


def test_openai_sdk_gets_several_samples(seen: dict[str, Any]) -> None:
    """The same as a stream: a seed repeats all of them."""
    whole, streamed = seen["samples"]
    assert whole == streamed
    assert len(set(whole)) > 1


def test_openai_sdk_gets_scores_with_texts(seen: dict[str, Any]) -> None:
    """Of an answer; and of a prompt, as lm-eval asks for them."""
    scores = seen["scores"]
    assert "".join(scores["tokens"]).startswith(scores["text"])
    assert all(scores["best"])
    prompt = scores["prompt"]
    assert "".join(prompt["tokens"][1:]).strip() != ""
    assert prompt["token_logprobs"][0] is None
    assert all(score <= 0 for score in prompt["token_logprobs"][1:])
    assert len(prompt["tokens"]) == len(prompt["token_logprobs"]) == len(prompt["top_logprobs"])


def test_openai_sdk_gets_the_text_of_token_ids(seen: dict[str, Any]) -> None:
    """`echo` has the text of all of them, the first one too, in a stream without scores as well."""
    alone, echo = seen["scores"]["alone"], seen["scores"]["echo"]
    tokens, scores = (alone["logprobs"][name] for name in ("tokens", "token_logprobs"))
    assert tokens[0]
    assert "".join(tokens) == alone["text"] == echo
    assert (scores[0], len(scores)) == (None, 3)


def test_seed_alone_is_accepted_by_greedy_models(seen: dict[str, Any]) -> None:
    """Their answers are repeatable as they are."""
    assert seen["seed"] in ("stop", "length")
