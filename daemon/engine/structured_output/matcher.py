"""Form: which tokens keep a completion to a grammar. Everything that knows llguidance's vocabularies and matchers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import PreTrainedTokenizerFast

from daemon.engine.structured_output.grammar import MOST_MESSAGE, translated, unforced
from daemon.shared.errors import invalid

LIMITS = LLParserLimits(max_items_in_row=1000, step_max_items=20_000, max_grammar_size=100_000, verbose_errors=False)
"""
Counted in work, not in time, so that a form is refused always or never. The most hostile grammar known took 70 ms for
one token on two cores; about 240 optional properties in one object are the most that fit.
"""

_SAMPLE = 'It is (a) {"b": [1, 2]}\n\té'
"""Spaces, line ends and bytes are what a tokenizer may write in ways of its own."""

Vocabulary: TypeAlias = LLTokenizer
"""A model's tokens, as grammars need them."""


def vocabulary(tokenizer: Any, eos_ids: Collection[int], field: str) -> Vocabulary:
    """
    Return the tokens of a Hugging Face tokenizer as grammars need them. Takes a second of processor time and more
    for the largest, during which the library keeps the interpreter lock.

    Args:
        tokenizer: The tokenizer.
        eos_ids: Ids that end a sequence.
        field: The field of a request that asks for a form.

    Raises:
        SidecarError: INVALID_ARGUMENT if the bytes of its tokens cannot be known, or if it has none to end with.
    """
    if not eos_ids:
        raise invalid(field, "needs a model with an end-of-sequence token, and this one names none")
    refusal = invalid(field, f"cannot be kept to with the tokenizer of this model ({type(tokenizer)})")
    # mlx-lm has a subclass that changes the text after decoding, which the tokens do not show.
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or type(tokenizer).decode is not PreTrainedTokenizerFast.decode:
        raise refusal
    with translated(field, " with the tokenizer of this model"):
        ids = tokenizer.encode(_SAMPLE, add_special_tokens=False)
        # llguidance.hf copies the tokenizer first, to switch padding and truncation off; encoding just did.
        tokens = LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=sorted(eos_ids))
        if tokens.decode_str(ids).strip() != str(tokenizer.decode(ids)).strip():
            raise refusal
        return tokens


def special_in(text: str, tokens: Vocabulary) -> dict[str, int]:
    """Return the tokens in a text that are no text for grammars, and their ids."""
    ids = tokens.tokenize_str(text, parse_special=True)
    return {tokens.decode_str([one]): one for one in ids if tokens.is_special_token(one)}


class GrammarMatcher:
    """
    The form of one completion and how much of it has been generated.

    Args:
        field: The field of the request that asks for it.
        grammar: What it must be, as `grammar.py` writes it.
        tokens: The model's vocabulary.

    Raises:
        SidecarError: INVALID_ARGUMENT if it cannot be kept to or takes too much work.
    """

    def __init__(self, field: str, grammar: str, tokens: Vocabulary) -> None:
        self._field = field
        with translated(field):
            if any(map(tokens.is_special_token, tokens.tokenize_str(grammar, parse_special=True))):
                grammar = unforced(grammar)
            self._matcher = LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)
            self._check()
            for warning in self._matcher.get_grammar_warnings():
                raise invalid(field, f"cannot be kept to: {warning[:MOST_MESSAGE]}")
        self.allowed()  # whatever is wrong from the start is found now, and not on the MLX thread

    def allowed(self) -> bytes:
        """
        Return which tokens may come next: bit `id % 8` of byte `id // 8`, whole 32-bit words.

        Raises:
            SidecarError: INVALID_ARGUMENT if that takes too much work, or if no token may.
        """
        with translated(self._field):
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
        with translated(self._field):
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            message = self._matcher.get_error().removesuffix("\n<non-verbose/>").partition("\n<backtrace>")[0]
            raise invalid(self._field, f"cannot be kept to: {message[:MOST_MESSAGE]}")
