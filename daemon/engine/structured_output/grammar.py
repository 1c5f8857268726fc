"""Grammars in llguidance's notation, made from response formats, JSON schemas and text. No other module writes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from llguidance import LLMatcher

from daemon.shared.errors import SidecarError, invalid

LARGEST_MULTIPLE = 10_000
"""The library builds a state for each remainder of `multipleOf`, outside of its own limits: a million took 3 s."""

MOST_MESSAGE = 300
"""Characters of the library's messages that an error quotes."""

_JSON_OPTIONS: Any = {"whitespace_pattern": r" ?|\n[ \t]{0,20}"}
"""White space as models write it. Without a bound, a small model may never write anything else."""

_JSON_RULES: Any = {"lenient": False}
"""A keyword that the library does not know is an error, even if the schema's own options allow it."""

_UNFORCED = '%llguidance {"no_forcing": true}\n'

_UNUSED_ATTRIBUTE = re.compile(r"\[[^\]\n]*\btemperature\s*=")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """
    The form that a request asks of its answer.

    Attributes:
        kind: Which form. It is also the name of the field of `response_format` that has it.
        text: The schema, the expression or the grammar; empty for `json_object`.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    text: str = ""

    @property
    def field(self) -> str:
        """The field of the request, for errors."""
        return f"response_format.{self.kind}"


def of_response(wanted: ResponseFormat) -> str:
    """
    Return the grammar of a response format.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form cannot be enforced.
    """
    with translated(wanted.field):
        if wanted.kind == "json_object":
            return _json_grammar({"type": "object"})
        if wanted.kind == "json_schema":
            return _json_grammar(_checked(wanted.field, _parsed(wanted.field, wanted.text)))
        if wanted.kind == "regex":
            return LLMatcher.grammar_from_regex(wanted.text)
        return LLMatcher.grammar_from_lark(_checked_lark(wanted.field, wanted.text))


def json_of_response(wanted: ResponseFormat) -> str:
    """
    Return the part of a rule that is a response format of JSON.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form cannot be enforced.
    """
    schema = {"type": "object"} if wanted.kind == "json_object" else _parsed(wanted.field, wanted.text)
    return json_part(wanted.field, schema)


def _checked_lark(field: str, grammar: str) -> str:
    """Return a grammar in the notation of Lark. Refuse what the library accepts there and this API does not."""
    if grammar.lstrip().startswith("{"):
        raise invalid(
            field, "begins with a brace; write it in the notation of Lark, with a rule `start`"
        )  # but the library's own JSON does
    for schema in _embedded_schemas(grammar):
        _checked(field, schema)
    if _UNUSED_ATTRIBUTE.search(grammar):
        raise invalid(field, "sets a temperature for a rule; set sampling.temperature for the whole answer")
    return grammar


def json_part(field: str, schema: dict[str, Any]) -> str:
    """
    Return the part of a rule that is JSON of a schema.

    Args:
        field: The field of the request that has the schema, for errors.
        schema: The schema.

    Raises:
        SidecarError: INVALID_ARGUMENT if the schema cannot be enforced.
    """
    with translated(field):
        (part,) = json.loads(_json_grammar(_checked(field, schema)))["grammars"]
        return f"%json {json.dumps(part['json_schema'])}"


def text_part(text: str, special: Mapping[str, int]) -> str:
    """
    Return the part of a rule that is a text.

    Args:
        text: The text.
        special: Tokens in the text that the library does not match as text, and their ids.
    """
    marks = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    words = re.split(f"({marks})", text) if marks else [text]
    parts = (f"<[{special[word]}]>" if word in special else json.dumps(word, ensure_ascii=False) for word in words)
    return " ".join(part for part in parts if part != '""')


def up_to(mark: str) -> str:
    """Return the grammar of any text up to the first occurrence of a mark, and of the mark."""
    return unforced(f"start: text\ntext[suffix={json.dumps(mark, ensure_ascii=False)}]: /(?s:.*)/")


def _json_grammar(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_OPTIONS, overrides=_JSON_RULES)


def unforced(grammar: str) -> str:
    """
    Return a grammar that does not force tokens.

    Where only one text is possible, the library forces the tokens that the tokenizer would use for it. If that text is
    also an added token, it forces that token and then does not accept it.
    """
    if grammar.startswith(_UNFORCED):
        return grammar
    if grammar.startswith("{"):
        (part,) = json.loads(grammar)["grammars"]
        grammar = part["lark_grammar"] or f"start: %json {json.dumps(part['json_schema'])}"
    return _UNFORCED + grammar


def _parsed(field: str, text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(field, f"is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise invalid(field, "must be a JSON object")
    return schema


def _embedded_schemas(grammar: str) -> Iterator[Any]:
    """Yield the JSON schemas in a grammar. The library itself refuses a schema that is no JSON."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"%json\s*", grammar):
        try:
            yield decoder.raw_decode(grammar, match.end())[0]
        except (ValueError, RecursionError):
            continue


def _checked(field: str, schema: Any) -> Any:
    """
    Return a schema.

    Raises:
        SidecarError: INVALID_ARGUMENT if its values of `multipleOf` need too many states, alone or together.
    """
    try:
        values = [abs(Fraction(str(value))) for value in _multiples(schema)]
    except (ValueError, OverflowError) as error:
        raise invalid(field, "has a multipleOf that is no number") from error
    scale = math.lcm(*(value.denominator for value in values))
    sizes = [int(value * scale) for value in values]
    if math.lcm(*sizes) > LARGEST_MULTIPLE or sum(sizes) > LARGEST_MULTIPLE:
        raise invalid(
            field, f"has values of multipleOf that need more than {LARGEST_MULTIPLE} states; use smaller values"
        )
    return schema


def _multiples(schema: Any) -> Iterator[float]:
    """Yield the numbers of all `multipleOf` of a schema, at any depth."""
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
    """
    Turn any error of the library, panics included, into an error of the request.

    Args:
        field: The field of the request that the grammar comes from.
        condition: Follows "cannot be enforced" in the message.

    Raises:
        SidecarError: INVALID_ARGUMENT for the field.
    """
    try:
        yield
    except SidecarError:
        raise
    except BaseException as error:
        # A panic of Rust code is no Exception: without this it would end the engine.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise invalid(field, f"cannot be enforced{condition}: {str(error)[:MOST_MESSAGE]}") from error
