"""Failures: each reason of the daemon has a status, its field the API's name, and its time to retry a header."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.http.anthropic.errors import NAMES as MESSAGES
from daemon.http.anthropic.errors import OVERLOADED
from daemon.http.anthropic.errors import shape as anthropic_shape
from daemon.http.anthropic.request_types import MessagesRequest
from daemon.http.errors import CODES, OTHER, STATUSES, error_response, problem, retry_headers
from daemon.http.ollama.errors import NAMES as OLLAMA
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.openai.errors import NAMES, shape
from daemon.http.parameters import Parameters
from daemon.http.responses.errors import NAMES as RESPONSES
from daemon.http.responses.request_types import ResponseRequest
from daemon.shared.errors import Reason
from mlx_sidecar import (
    Cancelled,
    ConnectionLost,
    ContextLengthExceeded,
    DaemonNotRunning,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolError,
    QueueFull,
    UntrustedSocket,
)
from mlx_sidecar.v1 import sidecar_pb2 as pb


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_status(reason: Reason) -> None:
    """A new one is not to become a bad gateway."""
    assert 400 <= STATUSES[reason] <= 503


def test_page_has_every_status() -> None:
    """A client's author reads there what each of them means, and those that the door never sends are not there."""
    root = Path(__file__).resolve().parents[3]
    code = "".join(path.read_text() for path in (root / "daemon" / "http").rglob("*.py"))
    sent = {
        *map(int, re.findall(r"Problem\(\s*(\d{3}),", code)),
        *STATUSES.values(),
        *CODES.values(),
        OTHER,
        OVERLOADED,
    }
    page = (root / "docs" / "http.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \|", page[page.index("## Errors") : page.index("## Security")], re.MULTILINE)
    assert {int(status) for row in rows for status in row.split(",")} == sent


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFull("full", retry_after=1.2), 429),
        (DaemonNotRunning("none"), 503),
        (ConnectionLost("lost"), 503),
        (UntrustedSocket("another's"), 503),
        (DeadlineExceeded("late"), 504),
        (Cancelled("over"), 503),
        (ProtocolError("what?"), 502),
        (ContextLengthExceeded("long"), 400),
    ],
)
def test_errors_of_the_client_have_a_status(error: Exception, status: int) -> None:
    """Also those that no daemon sent."""
    found = problem(error)
    assert found is not None
    assert found.status == status


def test_error_without_a_reason_has_a_code_in_words() -> None:
    found = [problem(DaemonNotRunning("none")), problem(QueueFull("full", reason="QUEUE_FULL"))]
    assert [each and each.code for each in found] == ["daemon_not_running", "queue_full"]


def test_bugs_are_no_problems() -> None:
    """They are logged and answered without their text."""
    assert problem(ValueError("secret")) is None


def test_refused_field_has_the_name_of_the_api() -> None:
    """In the text as well."""
    for field, name in (
        ("sampling.top_p", "top_p"),
        ("chat.messages[3].role", "messages[3].role"),
        ("stop.strings[0]", "stop[0]"),
        ("sampling.logit_bias[7]", "logit_bias[7]"),
        ("chat.tools[2].name", "tools[2].function.name"),
        (
            "chat.messages[3].tool_calls[1].arguments_json",
            "messages[3].tool_calls[1].function.arguments",
        ),
    ):
        found = problem(InvalidArgument(f"{field} is wrong", field=field), NAMES)
        assert found is not None
        assert (found.field, found.message) == (name, f"{name} is wrong")


@pytest.mark.parametrize(
    ("field", "text", "told"),
    [
        ("text", "the model's context holds 9", "the model's context holds 9"),
        ("text", "text is empty; give a text", "prompt is empty; give a text"),
        ("chat", "chat is refused by the chat template: chat!", "messages is refused by the chat template: chat!"),
        ("samples", "samples is 9; set sampling.temperature", "n is 9; set temperature"),
        ("max_tokens", "the prompt has 7 tokens plus max_tokens 9", "the prompt has 7 tokens plus max_tokens 9"),
        (
            "response_format.json_schema",
            "response_format.json_schema is no JSON",
            "response_format.json_schema.schema is no JSON",
        ),
        ("chat.tools", "chat.tools cannot go with cache.salt", "tools cannot go with cache_salt"),
        (
            "chat.template_args[tools]",
            "chat.template_args[tools] is no variable; set chat.tools",
            "chat_template_kwargs[tools] is no variable; set tools",
        ),
    ],
)
def test_fields_are_renamed_and_other_words_are_not(field: str, text: str, told: str) -> None:
    """A field may have the name of a word, and a text may name other fields as well."""
    found = problem(InvalidArgument(text, field=field), NAMES)
    assert found is not None
    assert found.message == told


def test_longest_name_of_another_field_counts() -> None:
    """One field's name may begin that of another."""
    error = InvalidArgument("stop.strings cannot go with response_format.json_schema", field="stop.strings")
    found = problem(error, OLLAMA)
    assert found is not None
    assert found.message == "options.stop cannot go with format"


@pytest.mark.parametrize(
    ("names", "told"),
    [(NAMES, "response_format"), (MESSAGES, "output_config.format"), (RESPONSES, "text.format"), (OLLAMA, "format")],
)
def test_other_field_of_a_text_has_the_name_of_the_api(names: Mapping[str, str], told: str) -> None:
    """Each API calls the form of an answer otherwise; a name that begins with it is another one."""
    text = "cannot go with response_format, which leaves no room for calls"
    found = problem(InvalidArgument(f"chat.tools {text}", field="chat.tools"), names)
    assert found is not None
    assert found.message == f"tools {text}".replace("response_format", told)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (NAMES, "tool_choice cannot be required: it is not known; use auto"),
        (RESPONSES, "tool_choice cannot be required: it is not known; use auto"),
        (MESSAGES, "tool_choice cannot be any: it is not known; use auto"),
    ],
)
def test_refused_value_has_the_name_of_the_api(names: dict[str, str], text: str) -> None:
    error = InvalidArgument("chat.tool_choice cannot be REQUIRED: it is not known; use AUTO", field="chat.tool_choice")

    found = problem(error, names)

    assert found is not None
    assert (found.message, found.field) == (text, "tool_choice")


@pytest.mark.parametrize("names", [NAMES, OLLAMA])
@pytest.mark.parametrize("value", [name.removeprefix("POOLING_") for name in (*pb.Pooling.keys(),)[1:]])
def test_value_of_pooling_is_told_as_http_takes_it(names: dict[str, str], value: str) -> None:
    """An advice that cannot be sent is none."""
    found = problem(InvalidArgument(f"pooling is needed; models mostly take {value}", field="pooling"), names)
    assert found is not None
    assert (found.message, found.field) == (f"pooling is needed; models mostly take {value.lower()}", "pooling")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (ChatRequest, [{"type": "image_url", "image_url": {"url": "data:"}}]),
        (ChatRequest, [{"type": "text", "text": "a"}, {"type": "input_audio"}]),
        (ResponseRequest, [{"type": "input_image", "image_url": "data:"}]),
        (MessagesRequest, [{"type": "image", "source": {}}]),
        (MessagesRequest, [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "video"}]}]),
    ],
)
def test_images_are_refused_for_what_they_are(kind: type[Parameters], content: list[dict[str, str]]) -> None:
    """At their place, and not as an unknown word alone."""
    turns = [{"role": "user", "content": content}]
    turns_of = {"input": turns} if kind is ResponseRequest else {"messages": turns}
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "m", "max_tokens": 1, **turns_of})
    found = problem(caught.value)
    assert found is not None
    assert "models read text, and no images" in found.message
    assert (found.field or "").endswith("].type")


def test_failed_call_has_the_id_of_the_log() -> None:
    """As a header, under the names that SDKs read; Anthropic's has it in the body as well."""
    found = problem(QueueFull("full", metadata={"request_id": "http-1"}))
    assert found is not None
    headers = error_response(*shape(found), found).headers
    assert headers["x-request-id"] == headers["request-id"] == "http-1"
    assert json.loads(anthropic_shape(found)[1])["request_id"] == "http-1"
    none = problem(QueueFull("full"))
    assert none is not None
    assert "x-request-id" not in error_response(*shape(none), none).headers


def test_request_that_is_too_large_is_413() -> None:
    """As one that the door itself refuses."""
    found = problem(InvalidArgument("request has 9 MB", field="request"))
    assert found is not None
    assert found.status == 413


def test_retry_is_told_in_seconds_and_milliseconds() -> None:
    """Whole seconds, rounded up."""
    found = problem(QueueFull("full", retry_after=1.2))
    assert found is not None
    assert retry_headers(found) == {"retry-after": "2", "retry-after-ms": "1200"}
    none = problem(InvalidArgument("no"))
    assert none is not None
    assert retry_headers(none) == {}


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ('{"a":"secret \\ud800"}', "the body is not valid JSON: unexpected end of hex escape at ", "invalid_json"),
        ("", "the body is not valid JSON: EOF while parsing a value at ", "invalid_json"),
        ('{"model": "m"}', "messages: field required", "missing_required_parameter"),
        ('{"model": 5, "messages": []}', "model: input should be a valid string", "invalid_type"),
        ('{"model": "m", "messages": []}', "messages: list should have at least 1 item, not 0", "invalid_value"),
        ('{"model": "m", "messages": [{"role": "x"}]}', "messages[0].role: input should be ", "invalid_value"),
    ],
)
def test_fault_of_a_body_is_told_with_its_kind_and_place(body: str, message: str, code: str) -> None:
    """Texts that were cut within a character are found by the place. No part of the body is repeated."""
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(body)
    found = problem(caught.value)
    assert found is not None
    assert found.message.startswith(message)
    assert "secret" not in found.message
    assert found.code == code


HELLO: dict[type[Parameters], dict[str, object]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "x"}]},
    ResponseRequest: {"input": "x"},
    MessagesRequest: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
}


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        (ChatRequest, {"tool_choice": "AUTO"}, "'required', 'function' or 'allowed_tools'; did you mean auto?"),
        (ChatRequest, {"response_format": {"type": "jsonschema"}}, "or 'json_schema'; did you mean json_schema?"),
        (ChatRequest, {"response_format": {"type": "xyz"}}, "or 'json_schema'"),
        (ResponseRequest, {"reasoning": {"summary": "consise"}}, "or 'detailed'; did you mean concise?"),
        (ResponseRequest, {"include": ["web_search_call.result"]}, "; did you mean web_search_call.results?"),
        (MessagesRequest, {"tool_choice": {"type": "ani"}}, "or 'none'; did you mean any?"),
    ],
)
def test_value_that_is_none_of_several_is_told_with_all_of_them(
    kind: type[Parameters], fields: dict[str, object], told: str
) -> None:
    """And with the nearest one."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "m", **HELLO[kind], **fields}))
    found = problem(caught.value)
    assert found is not None
    assert found.message.endswith(told)


def test_openai_shape_has_message_type_param_and_code() -> None:
    """All four, always."""
    found = problem(InvalidArgument("top_p is 2", field="sampling.top_p"), NAMES)
    assert found is not None
    status, body = shape(found)
    expected = {"message": "top_p is 2", "type": "invalid_request_error", "param": "top_p", "code": "invalid_argument"}
    assert (status, json.loads(body)) == (400, {"error": expected})
