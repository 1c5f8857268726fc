"""Hypothesis strategies for any protobuf message, built from its descriptor."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

_F = FieldDescriptor
_EDGES = [0, 1, -1, 16, 2**31 - 1, -(2**31)]
_TEXTS = st.sampled_from(
    ["", "ok", "a b c", "../../etc", "\0", "{}", "[1]", '{"type": "object"}', "é你\u202e", "x" * 2000]
)


def _whole(least: int, most: int) -> st.SearchStrategy[int]:
    return st.sampled_from([edge for edge in (*_EDGES, least, most) if least <= edge <= most]) | st.integers(
        least, most
    )


_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    _F.TYPE_INT32: _whole(-(2**31), 2**31 - 1),
    _F.TYPE_INT64: _whole(-(2**63), 2**63 - 1),
    _F.TYPE_UINT32: _whole(0, 2**32 - 1),
    _F.TYPE_UINT64: _whole(0, 2**64 - 1),
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_FLOAT: st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0]) | st.floats(width=32),
    _F.TYPE_STRING: _TEXTS | st.text(max_size=30),
    _F.TYPE_ENUM: _whole(-2, 100),
}


def messages(kind: type[M], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[M]:
    """Return a strategy for messages; `fixed` says what some of its fields may be."""

    @st.composite
    def build(draw: st.DrawFn) -> M:
        message = kind()
        _fill(draw, message)
        for name, values in fixed.items():
            setattr(message, name, draw(values))
        return message

    return build()


def _fill(draw: st.DrawFn, message: Message) -> None:
    """Set some of the fields; of a oneof, the last one that is set stays."""
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda field: field.name)) if fields else []:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = [_value(draw, part) for part in field.message_type.fields]
            getattr(message, field.name)[entries[0]] = entries[1]
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(draw, field) for _ in range(draw(st.integers(0, 3))))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(_value(draw, field))
        else:
            setattr(message, field.name, _value(draw, field))


def _value(draw: st.DrawFn, field: FieldDescriptor) -> Any:
    if field.message_type is None:
        return draw(_SCALARS[field.type])
    message = GetMessageClass(field.message_type)()
    _fill(draw, message)
    return message
