"""Validation of random messages: each passes, or is an invalid argument."""

from __future__ import annotations

import math
import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.server.requests import CHECKS, refused


def filled(kind: type[Message], rng: random.Random) -> Message:
    """Return a message with random fields, extreme values among them."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if rng.random() < 0.6:
            _fill(message, field, rng)
    return message


def _fill(message: Any, field: Any, rng: random.Random) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        texts = field.message_type.fields_by_name["key"].type == field.TYPE_STRING
        for _ in range(rng.choice([1, 3, 1025])):
            key, value = rng.randrange(2**32), rng.choice([0.0, math.nan, 100.5, -100.0])
            getattr(message, field.name)[f"n{key}" if texts else key] = str(value) if texts else value
    elif field.message_type is not None:
        inner = [filled(field.message_type._concrete_class, rng) for _ in range(rng.randint(1, 2))]
        if field.is_repeated:
            getattr(message, field.name).extend(inner)
        else:
            getattr(message, field.name).CopyFrom(inner[0])
    elif field.is_repeated:
        getattr(message, field.name).extend(_value(field, rng) for _ in range(rng.choice([1, 2, 70])))
    else:
        setattr(message, field.name, _value(field, rng))


def _value(field: Any, rng: random.Random) -> Any:
    ints = {"UINT64": 2**64 - 1, "UINT32": 2**32 - 1}
    kind = {getattr(FieldDescriptor, f"TYPE_{n}"): n for n in ("BOOL", "STRING", "FLOAT", "UINT32", "UINT64", "INT64")}
    name = kind.get(field.type, "INT32")
    if name == "BOOL":
        return rng.random() < 0.5
    if name == "STRING":
        return rng.choice(["", "x", "é\0\n", "🙂" * 300, "embedded", "/a/b"])
    if name == "FLOAT":
        return rng.choice([0.0, 0.5, 1.0, -1.0, 1e30, math.nan, math.inf, -math.inf])
    if name in ints:
        return rng.choice([0, 1, ints[name]])
    return rng.choice([0, 1, 20, -1, 2**31 - 1, -(2**31)])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CHECKS, key=lambda kind: kind.DESCRIPTOR.name)), st.integers(0, 2**32))
def test_any_message_passes_or_is_an_invalid_argument(kind: type[Message], seed: int) -> None:
    """Never anything else."""
    refused(filled(kind, random.Random(seed)))
