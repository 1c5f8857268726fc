"""OpenAI's responses: answers that are kept, and conversations that go on from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.requests import Request

from daemon.http.errors import Problem
from daemon.http.generation import Ask
from daemon.http.responses import endpoints
from daemon.http.responses.answering import Answer
from daemon.http.responses.asking import ask
from daemon.http.responses.conversation import Conversation, deleted, found, page
from daemon.http.responses.request_types import ResponseRequest
from daemon.http.responses.store import Kept, Store
from mlx_sidecar import AsyncClient, Delta, Finished, GenerateEvent, Message, Started, Timings, Usage

EVENTS: list[GenerateEvent] = [
    Started("req-7", "org/model", 12, 8),
    Delta("", (1,), (), "Hm."),
    Delta("Yes.", (2,), ()),
    Finished("stop", "", Usage(12, 8, 6), Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2)),
]


def answered(kept_in: Store, name: str, **fields: Any) -> Any:
    """Answer a request and return the turns that it was."""
    request = ResponseRequest.model_validate_json(json.dumps({"model": "m", **fields}))
    conversation = Conversation(request, kept_in)
    asked = ask(request, conversation.before, conversation.given)
    answer = Answer(request, Ask("m", "", request_id=name), now=1000.0)
    for event in EVENTS:
        list(answer.add(event))
    conversation.keep(answer.kept())
    return asked.prompt


def test_conversation_goes_on_from_an_answer() -> None:
    """Over several answers, without the instructions of earlier requests."""
    store = Store()
    answered(store, "1", input="One?", instructions="Be brief.")
    answered(store, "2", input="Two?", previous_response_id="resp_1")
    yes = Message("assistant", "Yes.", "Hm.", [])
    assert answered(store, "3", input="Three?", previous_response_id="resp_2") == [
        Message("user", "One?"), yes, Message("user", "Two?"), yes, Message("user", "Three?"),
    ]  # fmt: skip


def test_conversation_goes_on_from_any_of_its_answers() -> None:
    """Twice from the same, and from a later one when an earlier one is gone."""
    store = Store()
    answered(store, "1", input="One?")
    answered(store, "2", input="Two?", previous_response_id="resp_1")
    assert len(answered(store, "3", input="Else?", previous_response_id="resp_1")) == 3
    deleted(store, "resp_1")
    assert len(answered(store, "4", input="Three?", previous_response_id="resp_2")) == 5


@pytest.mark.parametrize("kind", [{}, {"type": None}, {"type": "item_reference"}], ids=str)
def test_references_are_the_items_of_answers(kind: dict[str, Any]) -> None:
    """Also without their type."""
    store = Store()
    answered(store, "1", input="One?")
    items = [
        {"role": "user", "content": "One?"},
        {"type": "item_reference", "id": "rs_1_0"},
        {"id": "msg_1_1", **kind},
        {"role": "user", "content": "Two?"},
    ]
    turns = answered(store, "2", input=items)
    assert turns[1] == Message("assistant", "Yes.", "Hm.", [])


def test_words_that_were_given_are_listed_as_parts() -> None:
    """As OpenAI lists them, whether they were given as text or as parts."""
    store = Store()
    for name, content in (("1", "One?"), ("2", [{"type": "input_text", "text": "One?"}])):
        answered(store, name, input=[{"role": "user", "content": content}])
        (item,) = page(found(store, f"resp_{name}"), limit=9, after=None, newest_first=False).data
        assert item["content"] == [{"type": "input_text", "text": "One?"}]


def test_kept_answer_comes_back_as_it_was() -> None:
    """Until it is deleted."""
    store = Store()
    answered(store, "1", input="One?", metadata={"a": "b"})
    response = json.loads(found(store, "resp_1").response)
    assert (response["status"], response["metadata"], response["store"]) == ("completed", {"a": "b"}, True)
    assert deleted(store, "resp_1").deleted
    for gone in (lambda: found(store, "resp_1"), lambda: deleted(store, "resp_1")):
        with pytest.raises(Problem) as error:
            gone()
        assert error.value.status == 404
    assert store.item("msg_1_1") is None


def test_answer_is_not_kept_if_asked() -> None:
    """`store` false."""
    store = Store()
    answered(store, "1", input="One?", store=False)
    assert store.get("resp_1") is None


def test_listed_items_have_what_requests_can_leave_out() -> None:
    """SDKs know an assistant's text as output alone, and need a status."""
    store = Store()
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "wet"}
    answered(
        store, "1", input=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, call, output]
    )
    asked, said, *others = page(found(store, "resp_1"), limit=9, after=None, newest_first=False).data
    assert asked["content"] == [{"type": "input_text", "text": "Hi"}]
    assert said["content"] == [{"type": "output_text", "text": "Ho", "annotations": []}]
    assert [one["status"] for one in (asked, said, *others)] == ["completed"] * 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": "x", "previous_response_id": "resp_9"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_9"}]}, "input[0].id"),
    ],
)
def test_what_is_not_kept_is_refused(fields: dict[str, Any], field: str) -> None:
    """By its parameter."""
    with pytest.raises(Problem) as error:
        answered(Store(), "1", **fields)
    assert (error.value.status, error.value.field) == (400, field)


def kept(size: int) -> Kept:
    """Return an answer of some bytes."""
    return Kept(b"r" * (size - 2), (b"g",), (b"o",))


def test_store_is_bounded_by_count_and_bytes() -> None:
    """What was used longest ago goes first; an answer that is too large is not kept at all."""
    store = Store(answers=2, size=100)
    for name in ("a", "b"):
        store.put(name, kept(10), [f"item {name}"])
    assert store.item("item a") == b"o"  # a use of it
    store.put("c", kept(10), [])
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]
    assert store.item("item b") is None
    store.put("d", kept(95), [])
    assert [name for name in "acd" if store.get(name)] == ["d"]
    store.put("e", kept(101), [])
    assert [name for name in "de" if store.get(name)] == ["d"]


def test_items_of_an_answer_come_in_pages() -> None:
    """Newest first, or in their order; with an id each."""
    items = tuple(json.dumps({"id": f"i{index}"}).encode() for index in range(3))
    answer = Kept(b"", items, ())
    first = page(answer, limit=2, after=None, newest_first=True)
    assert ([one["id"] for one in first.data], first.has_more, first.last_id) == (["i2", "i1"], True, "i1")
    second = page(answer, limit=2, after=first.last_id, newest_first=True)
    assert ([one["id"] for one in second.data], second.has_more) == (["i0"], False)
    assert [one["id"] for one in page(answer, limit=9, after="i0", newest_first=False).data] == ["i1", "i2"]
    with pytest.raises(Problem, match="after"):
        page(answer, limit=2, after="i9", newest_first=True)


@pytest.mark.parametrize("limit", ["0", "101", "x", "", "-1", pytest.param("9" * 5000, id="long")])
async def test_page_of_no_such_size_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """By its parameter; Python's own reader of numbers fails at thousands of digits."""
    store = Store()
    store.put("resp_1", kept(10), [])
    monkeypatch.setattr(endpoints, "_store", store)
    asked = {"type": "http", "query_string": f"limit={limit}".encode(), "path_params": {"name": "resp_1"}}
    with pytest.raises(Problem) as error:
        await endpoints.input_items(Request(asked), AsyncClient("/nowhere/s.sock"))
    assert (error.value.status, error.value.field) == (400, "limit")
