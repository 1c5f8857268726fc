"""
Parameters of an API: what is honoured, what is accepted because leaving it out changes nothing, and what is refused.

A request type is a pydantic model. Its fields are the parameters that are honoured. Two tables of the class have other
parameters: `harmless` ones are accepted and have no effect, for a reason; `refused` ones are refused by name, unless
the value asks for nothing. A parameter in none of them is refused as unknown. So no parameter is silently ignored, and
the tables of docs/http.md are made of the same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from daemon.http.errors import Problem, path
from daemon.shared.wording import did_you_mean

ItemT = TypeVar("ItemT")
StepT = TypeVar("StepT", int, str)


class _FirstError:
    """Marks a list or an object of any names: its validation stops at the first element that is wrong."""

    # FailFast of pydantic's own has no hash, which a type in a union needs.
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = {**handler(source), "fail_fast": True}
        return cast("CoreSchema", schema)


_FIRST_ERROR = _FirstError()

Items = Annotated[list[ItemT], _FIRST_ERROR]
"""A list in a request. An error of one element is enough: a body can have a million that are wrong."""

Named = Annotated[dict[str, ItemT], _FIRST_ERROR]
"""An object of a request, with names of the caller's own. As with `Items`, one error is enough."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    Why a parameter is refused.

    Attributes:
        why: What to do instead, or the reason; goes on after "is not supported, leave it out: ".
        neutral: Values that ask for nothing, and are accepted. null always is.
    """

    why: str
    neutral: tuple[Any, ...] = ()


class Parameters(BaseModel):
    """
    A JSON object of a request. Types are strict: a number in quotes is no number.

    Attributes:
        harmless: The reason of each parameter that is accepted without effect.
        refused: Each parameter that is refused.
        belongs: The values of `type` with which each of these fields counts; with any other it is refused.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, hide_input_in_errors=True)

    harmless: ClassVar[Mapping[str, str]] = {}
    refused: ClassVar[Mapping[str, Refusal]] = {}
    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {}


def check(value: Parameters) -> None:
    """
    Check the parameters of a request, and of all objects in it, as far as their types alone do not.

    Raises:
        Problem: For the first that is refused or unknown, or belongs to another type of its object.
    """
    for steps, where in objects(value):
        _check_type(where, steps)
        for name, given in (where.model_extra or {}).items():
            _check_one(type(where), name, given, (*steps, name))


def _check_type(where: Parameters, steps: tuple[int | str, ...]) -> None:
    """Refuse fields of an object that say nothing with its type: another type was meant, or another object."""
    for name, kinds in where.belongs.items():
        if getattr(where, name) is None or getattr(where, "type", None) in kinds:
            continue
        field = path((*steps, type(where).model_fields[name].alias or name))
        wanted = " or ".join(f"`{kind}`" for kind in kinds)
        raise Problem(
            400, f"{field} is only for type {wanted}; name that, or leave it out", code="invalid_value", field=field
        )


def _check_one(kind: type[Parameters], name: str, given: Any, steps: tuple[int | str, ...]) -> None:
    if name in kind.harmless or given is None:
        return
    field = path(steps)
    if (refusal := kind.refused.get(name)) is None:
        near = did_you_mean(name, (*kind.model_fields, *kind.harmless, *kind.refused))
        hint = f"; {near}" if near else ""
        raise Problem(400, f"{field} is no known parameter{hint}", code="unknown_parameter", field=field)
    # The type as well: True is equal to 1.
    if not any(given == one and type(given) is type(one) for one in refusal.neutral):
        text = f"{field} is not supported, leave it out: {refusal.why}"
        raise Problem(400, text, code="unsupported_parameter", field=field)


_FLAT = frozenset({str, int, float, bool, type(None), dict})
"""Types of values that hold no objects with parameters. A look into a set is quicker than `isinstance`."""


def objects(value: Any) -> Iterator[tuple[tuple[int | str, ...], Parameters]]:
    """Yield all objects of a request with their paths, itself first, in the order of the request's types."""
    left: list[tuple[tuple[int | str, ...], Any]] = [((), value)]
    while left:
        steps, one = left.pop()
        if isinstance(one, (list, tuple)):
            left.extend(((*steps, index), each) for index, each in reversed(_nested(enumerate(one))))
        elif isinstance(one, Parameters):
            yield steps, one
            fields = type(one).model_fields
            inner = _nested(vars(one).items())
            left.extend(((*steps, fields[name].alias or name), each) for name, each in reversed(inner))


def _nested(items: Iterable[tuple[StepT, Any]]) -> list[tuple[StepT, Any]]:
    """Return what can hold objects. Most values are texts or numbers, and a body can have a million token ids."""
    return [(step, each) for step, each in items if type(each) not in _FLAT]


def rows(kind: type[Parameters]) -> Iterator[tuple[str, str, str]]:
    """Yield name, treatment and explanation of each parameter of a type: honoured ones, then harmless, then refused."""
    for name, field in kind.model_fields.items():
        yield field.alias or name, "honoured", field.description or ""
    for name, why in kind.harmless.items():
        yield name, "harmless", why
    for name, refusal in kind.refused.items():
        unless = " or ".join(["null", *(f"`{_shown(one)}`" for one in refusal.neutral)])
        yield name, "refused", f"{refusal.why}; {unless} is accepted"


def _shown(value: Any) -> str:
    import json

    return json.dumps(value)
