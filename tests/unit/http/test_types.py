"""Wrong types in every field of every request type: each is refused by name, and none is a failure of the door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from daemon.http.api import Api, Endpoint, served
from daemon.http.parameters import Parameters, rows
from tests.unit.http.no_daemon import status
from tests.unit.http.wrong_values import VALUES, places, replaced

ENDPOINTS = [(api, one) for api in served() for one in api.load().endpoints if one.types]


def documents(kind: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Yield a request with the fields that it needs, and one more for each other field and each type in its lists."""
    fields = {field.alias or name: (_value(name, field), field) for name, field in kind.model_fields.items()}
    needed = {name: value for name, (value, field) in fields.items() if field.is_required()}
    yield needed
    for name, (value, field) in fields.items():
        if not field.is_required():
            yield {**needed, name: value, **({"stream": True} if name == "stream_options" else {})}
        for other in types(field.annotation):
            yield {**needed, name: [sample(other)]}


def types(annotation: Any) -> list[type[Parameters]]:
    """Return the types of objects in a list, if there are several."""
    if getattr(annotation, "__origin__", None) is not list:
        return [one for part in getattr(annotation, "__args__", ()) for one in types(part)]
    found = _inner(annotation.__args__[0])
    return found if len(found) > 1 else []


def _inner(annotation: Any) -> list[type[Parameters]]:
    if isinstance(annotation, type) and issubclass(annotation, Parameters):
        return [annotation]
    return [one for part in getattr(annotation, "__args__", ()) for one in _inner(part)]


def sample(kind: type[BaseModel]) -> dict[str, Any]:
    """Return an object of a type that has all its fields, from their annotations."""
    return {field.alias or name: _value(name, field) for name, field in kind.model_fields.items()}


def _value(name: str, field: FieldInfo) -> Any:
    return _of(name, field.annotation)


def _of(name: str, annotation: Any) -> Any:
    known = {"role": "user", "prompt": "x", "input": "x"}
    if name in known:
        return known[name]
    parts: tuple[Any, ...] = getattr(annotation, "__args__", ())
    if isinstance(annotation, type) and issubclass(annotation, Parameters):
        return sample(annotation)
    origin = getattr(annotation, "__origin__", None)
    if origin is list:
        return [_of("", parts[0])]
    if origin is dict:
        return {"1": 1}
    if str(annotation).startswith("typing.Literal"):
        return parts[0]
    if parts:
        return _of(name, parts[0])
    return {str: "x", int: 1, float: 0.5, bool: False}.get(annotation)


@pytest.mark.parametrize(("api", "endpoint"), ENDPOINTS, ids=[one.path for _, one in ENDPOINTS])
async def test_wrong_types_are_refused_or_accepted(api: Api, endpoint: Endpoint) -> None:
    """400 with the field's name, or the daemon is asked (503: there is none): nothing else, in any field."""
    kind = next(iter(endpoint.types.values()))
    accepted = 0
    for document in documents(kind):
        before = await status(endpoint, json.dumps(document).encode())
        assert before[0] in (400, 503)
        accepted += before[0] == 503
        for steps in places(document):
            for value in VALUES:
                found, answer = await status(endpoint, json.dumps(replaced(document, steps, value)).encode())
                assert found in (400, 503), (steps, value, answer)
                assert answer
    assert accepted > len(kind.model_fields) / 2, "the documents are hardly ever valid, so that the test shows little"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["model", "messages", "role", "content", "tools", "prompt"]) | st.text(), inner
            )
        ),
    )
)
async def test_any_json_is_answered(document: Any) -> None:
    """Whatever it is."""
    for _, endpoint in ENDPOINTS:
        found, _ = await status(endpoint, json.dumps(document).encode())
        assert found in (400, 503)


@pytest.mark.parametrize(
    "kind", dict.fromkeys(kind for _, one in ENDPOINTS for kind in one.types.values()), ids=lambda kind: kind.__name__
)
def test_every_parameter_is_explained(kind: type[Parameters]) -> None:
    """Once, with a treatment: that is what docs/http.md is made of."""
    seen = list(rows(kind))
    assert all(about for _, _, about in seen)
    assert len({name for name, _, _ in seen}) == len(seen)
