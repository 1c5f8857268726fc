"""Grammars: the form that a completion must have, and which tokens keep to it. Everything that knows llguidance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, TypeAlias

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import PreTrainedTokenizerFast

from daemon.errors import SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

LIMITS = LLParserLimits(max_items_in_row=1000, step_max_items=20_000, max_grammar_size=100_000, verbose_errors=False)
"""
Counted in work, not in time, so that a form is refused always or never. The most hostile grammar known took 70 ms for
one token on two cores; about 240 optional properties in one object are the most that fit.
"""

LARGEST_MULTIPLE = 10_000
"""The library builds a state for each remainder of `multipleOf`, outside of its own limits: a million took 3 s."""

MOST_MESSAGE = 300

_JSON_OPTIONS: Any = {"whitespace_pattern": r" ?|\n[ \t]{0,20}"}
"""Some white space, as models write it; without a bound a small model may never write anything else."""

_JSON_RULES: Any = {"lenient": False}
"""A keyword that the library does not know is an error, whatever the schema's own options say."""

_SAMPLE = 'It is (a) {"b": [1, 2]}\n\té'
"""Spaces, line ends and bytes are what a tokenizer may write in ways of its own."""

_UNUSED_ATTRIBUTE = re.compile(r"\[[^\]\n]*\btemperature\s*=")


Vocabulary: TypeAlias = LLTokenizer
"""A model's tokens, as grammars need them."""


def vocabulary(tokenizer: Any, eos_ids: Collection[int]) -> Vocabulary:
    """
    Return the tokens of a Hugging Face tokenizer as grammars need them. Takes up to a second for the largest.

    Raises:
        SidecarError: INVALID_ARGUMENT if the bytes of its tokens cannot be known, or if it has none to end with.
    """
    if not eos_ids:
        raise invalid("response_format", "needs a model with an end-of-sequence token, and this one names none")
    refusal = invalid("response_format", f"cannot be kept to with the tokenizer of this model ({type(tokenizer)})")
    # mlx-lm has a subclass that changes the text after decoding, which the tokens do not show.
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or type(tokenizer).decode is not PreTrainedTokenizerFast.decode:
        raise refusal
    with _translated("response_format", " with the tokenizer of this model"):
        ids = tokenizer.encode(_SAMPLE, add_special_tokens=False)
        # llguidance.hf copies the tokenizer first, to switch padding and truncation off; encoding just did.
        tokens = LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=sorted(eos_ids))
        if tokens.decode_str(ids).strip() != str(tokenizer.decode(ids)).strip():
            raise refusal
        return tokens


class Form:
    """
    The form of one completion and how much of it has been generated.

    Args:
        wanted: What the request asks for.
        tokens: The model's vocabulary.

    Raises:
        SidecarError: INVALID_ARGUMENT if it cannot be kept to or takes too much work.
    """

    def __init__(self, wanted: pb.ResponseFormat, tokens: Vocabulary) -> None:
        kind = wanted.WhichOneof("kind")
        self._field = f"response_format.{kind}"
        with _translated(self._field):
            grammar = self._grammar(wanted)
            if any(map(tokens.is_special_token, tokens.tokenize_str(grammar, parse_special=True))):
                grammar = _unforced(grammar)
            self._matcher = LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)
            self._check()
            for warning in self._matcher.get_grammar_warnings():
                raise invalid(self._field, f"cannot be kept to: {warning[:MOST_MESSAGE]}")
        self.allowed()  # whatever is wrong from the start is found now, and not on the MLX thread

    def allowed(self) -> bytes:
        """
        Return which tokens may come next: bit `id % 8` of byte `id // 8`, whole 32-bit words.

        Raises:
            SidecarError: INVALID_ARGUMENT if that takes too much work, or if no token may.
        """
        with _translated(self._field):
            mask = self._matcher.compute_bitmask()
            self._check()
        if not mask.strip(b"\0"):
            raise invalid(self._field, "cannot go on: no token of this model's vocabulary keeps to it")
        return mask

    def take(self, token: int) -> None:
        """
        Go on after a token, which must have been allowed.

        Raises:
            SidecarError: INVALID_ARGUMENT if that takes too much work.
        """
        with _translated(self._field):
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            message = self._matcher.get_error().removesuffix("\n<non-verbose/>")
            raise invalid(self._field, f"cannot be kept to: {message[:MOST_MESSAGE]}")

    def _grammar(self, wanted: pb.ResponseFormat) -> str:
        if wanted.HasField("json_object"):
            return _json_grammar({"type": "object"})
        if wanted.HasField("json_schema"):
            schema = _parsed(self._field, wanted.json_schema)
            _check_multiples(self._field, schema)
            return _json_grammar(schema)
        if wanted.HasField("regex"):
            return LLMatcher.grammar_from_regex(wanted.regex)
        if wanted.grammar.lstrip().startswith("{"):
            raise invalid(self._field, "begins with a brace, which no rule does")  # but the library's own JSON does
        for schema in _embedded_schemas(wanted.grammar):
            _check_multiples(self._field, schema)
        if _UNUSED_ATTRIBUTE.search(wanted.grammar):
            raise invalid(self._field, "sets a temperature for a rule; set sampling.temperature for the whole instead")
        return LLMatcher.grammar_from_lark(wanted.grammar)


def _json_grammar(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_OPTIONS, overrides=_JSON_RULES)


def _unforced(grammar: str) -> str:
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


def _check_multiples(field: str, schema: Any) -> None:
    """Refuse multiples that need too many states, each or several of them together."""
    try:
        values = [abs(Fraction(str(value))) for value in _multiples(schema)]
    except (ValueError, OverflowError) as error:
        raise invalid(field, "has a multipleOf that is no number") from error
    scale = math.lcm(*(value.denominator for value in values))
    sizes = [int(value * scale) for value in values]
    if math.lcm(*sizes) > LARGEST_MULTIPLE or sum(sizes) > LARGEST_MULTIPLE:
        raise invalid(field, f"has values of multipleOf that need more than {LARGEST_MULTIPLE} states together")


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
def _translated(field: str, condition: str = "") -> Iterator[None]:
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
