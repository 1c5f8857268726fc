"""The parsers of mlx-lm are used with a time limit, and as they are; references in the schemas of tools are bounded."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import FunctionType
from urllib.parse import quote

import pytest
import regex
from mlx_lm import tool_parsers

from daemon.engine.output.argument_types import type_of
from daemon.engine.output.notations.foreign import bounded

NOTATIONS = [module.name for module in pkgutil.iter_modules(tool_parsers.__path__)]
ANY = {"string", "number", "boolean", "null", "object", "array"}


@pytest.mark.parametrize("name", NOTATIONS)
def test_every_pattern_of_a_parser_is_bounded_in_a_copy(name: str) -> None:
    """Functions that the parser calls use the same copy."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    before = dict(vars(module))
    parse = bounded(module.parse_tool_call)
    assert isinstance(parse, FunctionType)
    namespace = parse.__globals__
    assert not [value for value in namespace.values() if isinstance(value, regex.Pattern)]
    functions = [value for value in namespace.values() if isinstance(value, FunctionType)]
    own = [function for function in functions if function.__module__ == parse.__module__]
    assert own
    assert all(function.__globals__ is namespace for function in own)
    assert parse.__module__ == module.parse_tool_call.__module__
    after = dict(vars(module))
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)


def test_a_parser_that_is_no_plain_function_is_used_as_it_is() -> None:
    """It has no namespace that could be copied."""
    parse = print
    assert bounded(parse) is parse


@pytest.mark.parametrize(
    ("place", "kinds"), [("0", {"number"}), ("1", ANY), ("9" * 5000, ANY)], ids=["there", "beyond", "endless"]
)
def test_reference_into_a_list_may_name_any_place(place: str, kinds: set[str]) -> None:
    """A client writes it: a place of thousands of digits ended the engine, as Python reads no such number."""
    root = {"x": [{"type": "integer"}]}
    assert type_of([{"$ref": f"#/x/{place}"}], root).kinds == kinds


@pytest.mark.parametrize("name", ["Id<string>", "a b", "100%"])
@pytest.mark.parametrize("write", [str, quote], ids=["as it is", "as in a URI"])
def test_encoded_reference_is_followed(name: str, write: Callable[[str], str]) -> None:
    """Generators for TypeScript write it as a part of a URI. Unknown, a text such as `5` would become a number."""
    root = {"definitions": {name: {"type": "string"}}}
    assert type_of([{"$ref": f"#/definitions/{write(name)}"}], root).kinds == {"string"}
