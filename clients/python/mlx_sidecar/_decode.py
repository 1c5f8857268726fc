"""
Conversion of protobuf messages to result dataclasses.

The dataclass names the fields, and the message's descriptor says how to convert each of them. The converters of a pair
are built once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message as Proto

ResultT = TypeVar("ResultT")
Reader = Callable[[Any], Any]


def decode(kind: Callable[..., ResultT], message: Proto) -> ResultT:
    """
    Copy a message into a frozen dataclass whose fields have the same names.

    Durations become seconds; durations, optional values and fields with a hint of None are None when they are unset;
    enums become lower-case names without their prefix, or "unknown" when they are newer than this client; repeated
    fields become tuples.
    """
    readers = _readers(kind, message.DESCRIPTOR)
    return kind(**{name: read(message) for name, read in readers})


@cache
def _readers(kind: Any, descriptor: Descriptor) -> list[tuple[str, Reader]]:
    hints = get_type_hints(kind)
    return [(f.name, _reader(hints[f.name], descriptor.fields_by_name[f.name])) for f in fields(kind)]


def _reader(hint: Any, field: FieldDescriptor) -> Reader:
    name = field.name
    if get_origin(hint) is tuple:
        each = _converter(get_args(hint)[0], field)
        return lambda message: tuple(map(each, getattr(message, name)))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return lambda message: dict(getattr(message, name))
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
        return lambda message: _seconds(getattr(message, name)) if message.HasField(name) else None
    if field.has_presence and field.message_type is None:
        return lambda message: _plain(getattr(message, name)) if message.HasField(name) else None
    optional = type(None) in get_args(hint)
    convert = _converter(next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint, field)
    if optional:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def _converter(kind: Any, field: FieldDescriptor) -> Reader:
    if field.message_type is not None:
        return _seconds if kind is float else lambda message: decode(kind, message)
    if field.enum_type is not None:
        names = _names(field.enum_type)
        return lambda number: names.get(number, "unknown")
    return lambda value: value


def _plain(value: Any) -> Any:
    # An option of 0.95 comes back as the float32 next to it.
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _names(enum: EnumDescriptor) -> dict[int, str]:
    # Every enum's zero is PREFIX_UNSPECIFIED.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {number: value.name.removeprefix(prefix).lower() for number, value in enum.values_by_number.items()}
