"""Grammars: what a completion must be, in llguidance's notation. Everything that knows it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from llguidance import LLMatcher

from daemon.shared.errors import SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

LARGEST_MULTIPLE = 10_000
"""The library builds a state for each remainder of `multipleOf`, outside of its own limits: a million took 3 s."""

MOST_MESSAGE = 300

_JSON_OPTIONS: Any = {"whitespace_pattern": r" ?|\n[ \t]{0,20}"}
"""Some white space, as models write it; without a bound a small model may never write anything else."""

_JSON_RULES: Any = {"lenient": False}
"""A keyword that the library does not know is an error, whatever the schema's own options say."""

_UNUSED_ATTRIBUTE = re.compile(r"\[[^\]\n]*\btemperature\s*=")


def of_response(wanted: pb.ResponseFormat) -> tuple[str, str]:
    """
    Return the field of a response format and its grammar.

    Raises:
        SidecarError: INVALID_ARGUMENT if it has none.
    """
    field = f"response_format.{wanted.WhichOneof('kind')}"
    with translated(field):
        return field, _of_response(field, wanted)


def _of_response(field: str, wanted: pb.ResponseFormat) -> str:
    if wanted.HasField("json_object"):
        return _json_grammar({"type": "object"})
    if wanted.HasField("json_schema"):
        return _json_grammar(_checked(field, _parsed(field, wanted.json_schema)))
    if wanted.HasField("regex"):
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.grammar.lstrip().startswith("{"):
        raise invalid(field, "begins with a brace, which no rule does")  # but the library's own JSON does
    for schema in _embedded_schemas(wanted.grammar):
        _checked(field, schema)
    if _UNUSED_ATTRIBUTE.search(wanted.grammar):
        raise invalid(field, "sets a temperature for a rule; set sampling.temperature for the whole instead")
    return LLMatcher.grammar_from_lark(wanted.grammar)


def json_part(field: str, schema: dict[str, Any]) -> str:
    """
    Return the part of a rule that is JSON of a schema.

    Raises:
        SidecarError: INVALID_ARGUMENT if the schema cannot be kept to.
    """
    with translated(field):
        (part,) = json.loads(_json_grammar(_checked(field, schema)))["grammars"]
        return f"%json {json.dumps(part['json_schema'])}"


def text_part(text: str, special: Mapping[str, int]) -> str:
    """
    Return the part of a rule that is a text.

    Args:
        text: The text.
        special: Tokens in it that are no text for the library, and their ids.
    """
    marks = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    words = re.split(f"({marks})", text) if marks else [text]
    parts = (f"<[{special[word]}]>" if word in special else json.dumps(word, ensure_ascii=False) for word in words)
    return " ".join(part for part in parts if part != '""')


def _json_grammar(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_OPTIONS, overrides=_JSON_RULES)


def unforced(grammar: str) -> str:
    """
    Return a grammar under which text without an alternative is not forced into the tokens that the tokenizer would use.

    Of text that is also an added token, the library forces that token and then does not accept it.
    """
    if grammar.startswith("{"):
        (part,) = json.loads(grammar)["grammars"]
        grammar = part["lark_grammar"] or f"start: %json {json.dumps(part['json_schema'])}"
    return '%llguidance {"no_forcing": true}\n' + grammar


def _parsed(field: str, text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(field, f"is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise invalid(field, "must be a JSON object")
    return schema


def _embedded_schemas(grammar: str) -> Iterator[Any]:
    """Yield the JSON schemas in a grammar; what is no JSON, the library refuses itself."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"%json\s*", grammar):
        try:
            yield decoder.raw_decode(grammar, match.end())[0]
        except (ValueError, RecursionError):
            continue


def _checked(field: str, schema: Any) -> Any:
    """Return a schema; refuse multiples that need too many states, each or several of them together."""
    try:
        values = [abs(Fraction(str(value))) for value in _multiples(schema)]
    except (ValueError, OverflowError) as error:
        raise invalid(field, "has a multipleOf that is no number") from error
    scale = math.lcm(*(value.denominator for value in values))
    sizes = [int(value * scale) for value in values]
    if math.lcm(*sizes) > LARGEST_MULTIPLE or sum(sizes) > LARGEST_MULTIPLE:
        raise invalid(field, f"has values of multipleOf that need more than {LARGEST_MULTIPLE} states together")
    return schema


def _multiples(schema: Any) -> Iterator[float]:
    """Yield the numbers of all `multipleOf`, wherever they are."""
    left = [schema]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            value = item.get("multipleOf")
            if isinstance(value, int | float) and not isinstance(value, bool) and value:
                yield value
            left += item.values()
        elif isinstance(item, list):
            left += item


@contextmanager
def translated(field: str, condition: str = "") -> Iterator[None]:
    """Turn what the library raises, its panics included, into an error of this request."""
    try:
        yield
    except SidecarError:
        raise
    except BaseException as error:
        # A panic of Rust code is no Exception: nobody else would catch it, and the engine would end.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise invalid(field, f"cannot be kept to{condition}: {str(error)[:MOST_MESSAGE]}") from error
