"""The request decoder: fields are counted in the bytes of a request, before messages are built from them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from daemon.server.field_checks import MAX_REQUEST_BYTES
from daemon.server.generate_validation import MAX_IDS, MAX_MESSAGES
from daemon.server.request_decoder import MAX_FIELDS, PACKED_BYTES, STEP_BYTES, STEP_FIELDS, counted, parse
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb

KIND = pb.GenerateRequest
FIELDS = {field.name: field.number for field in pb.GenerateRequest.DESCRIPTOR.fields}
BIAS = pb.Sampling.DESCRIPTOR.fields_by_name["logit_bias"].number
CHAT = {field.name: field.number for field in pb.Chat.DESCRIPTOR.fields}


def part(number: int, body: bytes) -> bytes:
    """Return an encoded field of bytes."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value: int) -> bytes:
    """Return an encoded number."""
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + (varint(value >> 7) if value > 127 else b"")


def parsed(data: bytes) -> pb.GenerateRequest:
    """Return the request of these bytes, all steps at once."""
    return asyncio.run(parse(data, KIND.FromString, KIND.DESCRIPTOR))


def refusal(data: bytes) -> str:
    """Return why bytes are no request."""
    with pytest.raises(SidecarError) as caught:
        parsed(data)
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", "request")
    return caught.value.message


def count(message: Any) -> int:
    """Count the fields of a message the slow way: each element of a list, but packed numbers as one."""
    total = 0
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            total += 1 if not field.is_repeated or field.is_packed else len(value)
            total += sum(len(varint(one)) for one in value) // PACKED_BYTES if field.is_packed else 0
        elif field.message_type.GetOptions().map_entry:
            total += len(value)
            total += 2 * len(value)  # key and value of each entry
        else:
            for one in value if field.is_repeated else [value]:
                total += 1 + count(one)
    return total


TEXTS = st.text(max_size=8)
IDS = st.lists(st.integers(0, 2**32 - 1), max_size=200)
REQUESTS = st.builds(
    pb.GenerateRequest,
    model=TEXTS,
    chat=st.builds(
        pb.Chat,
        messages=st.lists(
            st.builds(pb.ChatMessage, role=TEXTS, tool_calls=st.lists(st.builds(pb.ToolCall, name=TEXTS), max_size=3)),
            max_size=4,
        ),
        tools=st.lists(st.builds(pb.Tool, name=TEXTS, description=TEXTS), max_size=3),
    ),
    sampling=st.builds(pb.Sampling, logit_bias=st.dictionaries(st.integers(0, 2**31), st.floats(-1, 1), max_size=4)),
    stop=st.builds(
        pb.Stop, strings=st.lists(TEXTS, max_size=4), token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=200)
    ),
    max_tokens=st.integers(-(2**31), 2**31 - 1),
)


@given(REQUESTS)
def test_decoder_counts_fields_like_protobuf(request_: pb.GenerateRequest) -> None:
    """To one."""
    data, fields = request_.SerializeToString(), count(request_)
    assert list(counted(data, KIND.DESCRIPTOR))[-1] == fields
    assert parsed(data) == request_


@given(st.binary(max_size=200))
def test_decoder_parses_or_refuses_any_bytes(data: bytes) -> None:
    """Counting never fails, and decides nothing that the library decides."""
    try:
        expected: Message | None = KIND.FromString(data)
    except DecodeError:
        expected = None
    if expected is None:
        assert "cannot be decoded" in refusal(data)
    else:
        assert parsed(data).SerializeToString() == expected.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        part(FIELDS["chat"], part(CHAT["messages"], b"") * (MAX_FIELDS + 1)),
        part(FIELDS["chat"], part(CHAT["tools"], part(1, b"a")) * MAX_FIELDS),
        part(FIELDS["stop"], part(1, b"") * (MAX_FIELDS + 1)),
        part(FIELDS["model"], b"") * (MAX_FIELDS + 1),
        part(
            FIELDS["sampling"],
            part(pb.Sampling.DESCRIPTOR.fields_by_name["logit_bias"].number, b"\x08\x01") * MAX_FIELDS,
        ),
        part(999, b"") * (MAX_FIELDS + 1),
        b"\x5b\x5c" * MAX_FIELDS,
        part(FIELDS["tokens"], part(1, bytes(8_000_000))),
        part(FIELDS["tokens"], part(1, bytes(PACKED_BYTES)) * (MAX_FIELDS // 2 + 1)),
    ],
    ids=["messages", "tools", "stops", "model", "bias", "unknown", "groups", "ids", "ids in pieces"],
)
def test_request_of_countless_fields_is_not_parsed(data: bytes) -> None:
    """Parts of each kind count."""
    assert f"more than {MAX_FIELDS} parts" in refusal(data)


def test_field_count_stops_after_a_few_thousand() -> None:
    """For each kind of message, the event loop can do other work between the steps."""
    deep = part(FIELDS["chat"], part(CHAT["tools"], part(1, b"a")) * 3 * STEP_FIELDS)
    wide = part(FIELDS["model"], b"") * 3 * STEP_FIELDS
    for data in (deep, wide):
        counts = list(counted(data, KIND.DESCRIPTOR))
        assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= STEP_FIELDS
        assert len(counts) > 3


@pytest.mark.parametrize(("nbytes", "pauses"), [(0, 0), (STEP_BYTES, 0), (STEP_BYTES + 1, 2)])
def test_small_request_is_decoded_without_a_pause(nbytes: int, pauses: int) -> None:
    """A pause is a turn of the event loop. A small request needs none, however many fields it has."""
    data = (
        (part(FIELDS["model"], b"") * nbytes)[:nbytes] if nbytes <= STEP_BYTES else part(FIELDS["text"], b"a" * nbytes)
    )
    decoding = parse(data, KIND.FromString, KIND.DESCRIPTOR)
    seen = 0
    while True:
        try:
            decoding.send(None)
        except StopIteration:
            break
        seen += 1
    assert seen == pauses


def test_longest_chat_and_prompt_are_decoded() -> None:
    """All requests that validation allows have room."""
    message = pb.ChatMessage(role="user", content="x" * 500)
    for request in (
        pb.GenerateRequest(chat=pb.Chat(messages=[message] * MAX_MESSAGES)),
        pb.GenerateRequest(tokens=pb.TokenIds(ids=[2**27] * MAX_IDS)),
    ):
        assert parsed(request.SerializeToString()) == request


def test_oversized_request_is_refused_by_its_length() -> None:
    """Before it is looked into."""
    assert str(MAX_REQUEST_BYTES) in refusal(bytes(MAX_REQUEST_BYTES + 1))


@pytest.mark.parametrize("depth", [60, 1_000, 20_000])
def test_extreme_nesting_is_refused_or_ignored(depth: int) -> None:
    """Groups within groups, messages within messages: neither stack overflows."""
    nested = b""
    for _ in range(depth):
        nested = part(FIELDS["chat"], nested)
        if len(nested) > 1_000_000:
            break
    for data in (b"\x5b" * depth, b"\x5b" * depth + b"\x5c" * depth, nested):
        try:
            parsed(data)
        except SidecarError as error:
            assert error.field == "request"  # noqa: PT017 - either is fine, and nothing else is
