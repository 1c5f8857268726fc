"""Anthropic's errors, the parameters that a model may not know, and pages of models."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from daemon.http import generation
from daemon.http.anthropic import wishes
from daemon.http.anthropic.errors import EVENTS, Failed, shape, told
from daemon.http.anthropic.models import find, page
from daemon.http.anthropic.request_types import MessagesRequest
from daemon.http.errors import Problem
from daemon.http.generation import Ask
from daemon.http.parameters import check
from mlx_sidecar import (
    AsyncClient,
    BudgetInUse,
    ContextLengthExceeded,
    GenerateEvent,
    InvalidArgument,
    ListedModel,
    ModelAbilities,
    ModelList,
    ModelNotFound,
    NanLogits,
    QueueFull,
    ShuttingDown,
    SidecarError,
    Started,
)

REQUEST = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}


def shaped(error: SidecarError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error of the daemon."""
    with pytest.raises(Failed) as caught, told("req-7"):
        raise error
    status, body = shape(caught.value)
    found: dict[str, Any] = json.loads(body)
    assert (found["type"], found["request_id"]) == ("error", "req-7")
    return status, found["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidArgument("top_k is wrong", field="sampling.top_k"), 400, "invalid_request_error"),
        (InvalidArgument("request is too large", field="request"), 413, "request_too_large"),
        (ModelNotFound("none"), 404, "not_found_error"),
        (QueueFull("full", retry_after=1.0), 529, "overloaded_error"),
        (BudgetInUse("in use", retry_after=1.0), 529, "overloaded_error"),
        (ShuttingDown("over"), 503, "api_error"),
        (NanLogits("nan"), 500, "api_error"),
    ],
)
def test_errors_have_the_types_of_the_api(error: SidecarError, status: int, kind: str) -> None:
    """Clients decide by them whether they try again."""
    found, body = shaped(error)
    assert (found, body["type"]) == (status, kind)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (405, "invalid_request_error"),
    ],
)
def test_errors_of_the_door_have_them_too(status: int, kind: str) -> None:
    """They belong to no request of the daemon's."""
    found = json.loads(shape(Problem(status, "no", code="x"))[1])
    assert (found["error"]["type"], found["request_id"]) == (kind, None)


def test_refused_thread_tells_sdks_to_go_on_without() -> None:
    """Their loops for tools begin with a thread, and look for these words alone. No other error has them."""
    for field, details in (
        ("thread", {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}),
        ("container", None),
    ):
        with pytest.raises(Problem) as caught:
            check(MessagesRequest.model_validate({**REQUEST, field: {"type": "create"}}))
        found = json.loads(shape(caught.value)[1])["error"]
        assert (found["type"], found.get("details")) == ("invalid_request_error", details)


def test_error_of_a_stream_is_an_event() -> None:
    """By its name SDKs know it; a ping is one that they skip."""
    assert EVENTS.error(Problem(500, "no", code="x")) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"no"},"request_id":null}\n\n'
    )
    assert EVENTS.alive == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_long_prompt_has_the_words_that_clients_know() -> None:
    """They shorten the conversation then, and read both numbers."""
    details = {"prompt_tokens": "300", "context_length": "200"}
    status, body = shaped(ContextLengthExceeded("too long", metadata=details, field="chat"))
    assert (status, body["message"]) == (400, "prompt is too long: 300 tokens > 200 maximum")


def test_errors_name_the_apis_own_parameters() -> None:
    """An effort is no part of the conversation here."""
    effort = InvalidArgument("chat.reasoning_effort has a fault", field="chat.reasoning_effort")
    assert shaped(effort)[1]["message"] == "output_config.effort has a fault"


async def test_what_a_model_does_not_know_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other; what is no wish is refused."""
    asked: list[dict[str, Any]] = []

    async def refuse(client: AsyncClient, ask: Ask) -> AsyncGenerator[GenerateEvent]:
        asked.append(dict(ask.options))
        for name, field in (("reasoning_effort", "chat.reasoning_effort"), ("reasoning_budget", "reasoning_budget")):
            if name in ask.options:
                raise InvalidArgument("has no effect", field=field)
        if ask.options["max_tokens"] == 3:
            raise InvalidArgument("is refused", field="max_tokens")
        yield Started("r", "m", 1, 0, warnings=("messages[0] is odd",))

    monkeypatch.setattr(generation, "events", refuse)
    client = AsyncClient("/nowhere/s.sock")
    options: Any = {"reasoning_effort": "high", "reasoning_budget": 5, "max_tokens": 2}
    (started,) = [event async for event in wishes.events(client, Ask("m", "x", options))]
    assert asked[-1] == {"max_tokens": 2}
    assert isinstance(started, Started)
    assert started.warnings == (
        "output_config.effort is left out: the model's template reads none",
        "thinking.budget_tokens is left out: the model has no marks of thinking",
        "messages[0] is odd",
    )
    with pytest.raises(InvalidArgument, match="is refused"):
        [event async for event in wishes.events(client, Ask("m", "x", {"max_tokens": 3}))]


def listed(*models: tuple[str, bool]) -> ModelList:
    """Return models, each with an alias, that can chat or not."""
    found = [
        ListedModel(
            model=name, aliases=(f"{name}-alias",), place="hub_cache", loaded=False, complete=True, size_bytes=1,
            disk_bytes=1, fits=True, architecture="x", context_length=512, quantization_bits=0, revision="",
            can=ModelAbilities(chat, tools=False, reasoning=False, embeddings=False), problem="", path="/x",
            last_used_unix_seconds=0,
        )
        for name, chat in models
    ]  # fmt: skip
    return ModelList(tuple(found), (), 0, truncated=False, aliases={})


MODELS = listed(("a", True), ("b", False), ("c", True))


def test_models_that_can_chat_are_listed_with_their_aliases() -> None:
    """Under each name that a request can use."""
    found = page(MODELS, {"beta": "true"})
    assert [one.id for one in found.data] == ["a-alias", "c-alias", "a", "c"]
    assert (found.has_more, found.first_id, found.last_id) == (False, "a-alias", "c")
    assert find(MODELS, "c").max_input_tokens == 512
    with pytest.raises(Problem):
        find(MODELS, "b")
    assert page(listed(), {}).first_id is None


def test_models_come_in_pages() -> None:
    """After one, or before one."""
    first = page(MODELS, {"limit": "3"})
    assert ([one.id for one in first.data], first.has_more) == (["a-alias", "c-alias", "a"], True)
    rest = page(MODELS, {"limit": "3", "after_id": "a"})
    assert ([one.id for one in rest.data], rest.has_more) == (["c"], False)
    before = page(MODELS, {"limit": "2", "before_id": "c"})
    assert ([one.id for one in before.data], before.has_more) == (["c-alias", "a"], True)


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "x"}, {"limit": "9" * 5000}, {"after_id": "b"}])
def test_wrong_pages_are_refused(query: dict[str, str]) -> None:
    """By the name of the parameter."""
    with pytest.raises(Problem) as caught:
        page(MODELS, query)
    assert caught.value.field in query
