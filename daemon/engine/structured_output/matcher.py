"""Matches a completion against a grammar, with llguidance: the tokens that may come next."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from daemon.engine.output.token_text import token_text
from daemon.engine.structured_output.grammar import MOST_MESSAGE, translated, unforced
from daemon.shared.errors import invalid

LIMITS = LLParserLimits(max_items_in_row=1000, step_max_items=20_000, max_grammar_size=100_000, verbose_errors=False)
"""
The limits count work and not time, so that a form is refused always or never. The most hostile grammar known took 70 ms
for one token on two cores. About 240 optional properties in one object fit.
"""

_SAMPLE = 'It is (a) {"b": [1, 2]}\n\té'
"""Text with spaces, line ends and a character of two bytes, which tokenizers represent in different ways."""


class Vocabulary:
    """
    A model's tokens, as grammars need them.

    Args:
        tokens: The tokens as the library knows them.
        added: The tokens that the tokenizer cuts out of a text before anything else, by their text.

    Attributes:
        tokens: The same.
    """

    def __init__(self, tokens: LLTokenizer, added: Mapping[str, int]) -> None:
        self.tokens = tokens
        self._added = added
        special = [text for text, id_ in added.items() if tokens.is_special_token(id_)]
        self._special = (
            re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None
        )

    def special_in(self, text: str) -> dict[str, int]:
        """Return the special tokens in a text, which grammars do not match as text, and their ids."""
        # The library finds those that look like <this> or [this] alone.
        return {word: self._added[word] for word in self._special.findall(text)} if self._special else {}

    def ids_of(self, text: str) -> list[int]:
        """Return ids that have a text; of all that have it, not always those that the tokenizer would take."""
        ids: list[int] = []
        at = 0
        for match in self._special.finditer(text) if self._special else ():
            ids += [*self.tokens.tokenize_str(text[at : match.start()]), self._added[match.group()]]
            at = match.end()
        return ids + self.tokens.tokenize_str(text[at:])


def vocabulary(tokenizer: Any, eos_ids: Collection[int], field: str) -> Vocabulary:
    """
    Return the tokens of a Hugging Face tokenizer as grammars need them.

    This takes 0.3 s of processor time for 150,000 tokens, during which the library keeps the interpreter lock. Given
    the tokenizer's own file, and with the library's "slices", it would take 1 s, and masks would be made in 0.02 ms
    instead of 0.1 ms.

    Args:
        tokenizer: The tokenizer.
        eos_ids: Ids that end a sequence.
        field: The field of the request that asks for a form, for errors.

    Raises:
        SidecarError: INVALID_ARGUMENT if the bytes of the tokens are not known, or if no token ends a sequence.
    """
    if not eos_ids:
        raise invalid(field, "needs a model with an end-of-sequence token; this model names none")
    refusal = invalid(
        field,
        f"cannot be enforced with the tokenizer of this model: it hides the bytes of its tokens ({type(tokenizer)})",
    )
    # A subclass in mlx-lm changes the text after decoding; the tokens do not show that.
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    if not fast or type(tokenizer).decode is not PreTrainedTokenizerFast.decode:
        raise refusal
    with translated(field, " with the tokenizer of this model"):
        ids = tokenizer.encode(_SAMPLE, add_special_tokens=False)
        tokens = LLTokenizer(_described(tokenizer, eos_ids), eos_token=sorted(eos_ids), slices=[])
        if tokens.decode_str(ids).strip() != str(tokenizer.decode(ids)).strip():
            raise refusal
        added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
        return Vocabulary(tokens, added)


def _described(tokenizer: Any, eos_ids: Collection[int]) -> Any:
    """Return a tokenizer as the library takes it: by the bytes of its tokens if they are known, or else by its file."""
    text = token_text(tokenizer)
    if text is None or not text.alike:
        # llguidance.hf copies the tokenizer first, to switch padding and truncation off; encoding just did.
        return tokenizer.backend_tokenizer.to_str()
    described = _Tokens(tokenizer)
    described.eos_token_id = min(eos_ids)
    described.tokens = [text.bytes_of(id_, first=False) or b"" for id_ in range(len(tokenizer))]
    return TokenizerWrapper(described)


class _Tokens:
    """A tokenizer as llguidance's TokenizerWrapper reads it, except for its first end-of-sequence id and its tokens."""

    bos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self.special_token_ids = [id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special]
        self.eos_token_id = 0
        self.tokens: list[bytes] = []

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text, add_special_tokens=False).ids)


class GrammarMatcher:
    """
    The form of one completion, and the position of the completion in it.

    Args:
        field: The field of the request that asks for the form, for errors.
        grammar: The grammar, as `grammar.py` writes it.
        tokens: The model's vocabulary.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form cannot be enforced or takes too much work.
    """

    def __init__(self, field: str, grammar: str, tokens: Vocabulary) -> None:
        self._field = field
        self._tokens = tokens
        with translated(field):
            if tokens.special_in(grammar):
                grammar = unforced(grammar)
            self._matcher = LLMatcher(tokens.tokens, grammar, log_level=0, limits=LIMITS)
            self._check()
            for warning in self._matcher.get_grammar_warnings():
                raise invalid(field, f"cannot be enforced: {warning[:MOST_MESSAGE]}")
        self.allowed()  # a form without a first token fails here, and not later on the MLX thread

    def again(self) -> GrammarMatcher:
        """Return another matcher at the same position; the grammar is not compiled again."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def allowed(self) -> bytes:
        """
        Return the tokens that may come next: bit `id % 8` of byte `id // 8`, in whole 32-bit words.

        Raises:
            SidecarError: INVALID_ARGUMENT if that takes too much work, or if no token is possible.
        """
        with translated(self._field):
            mask = self._matcher.compute_bitmask()
            self._check()
        if not mask.strip(b"\0"):
            raise invalid(self._field, "cannot go on: the form allows no token of this model's vocabulary")
        return mask

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def take_text(self, text: str) -> bool:
        """Advance by a text, whatever its tokens are. Return False, without a change, if it is not allowed."""
        with translated(self._field):
            ids = self._tokens.ids_of(text)
            if self._matcher.validate_tokens(ids) < len(ids):
                return False
            self._matcher.consume_tokens(ids)
            self._check()
        return True

    def take(self, token: int) -> None:
        """
        Advance by a token, which must have been allowed.

        Raises:
            SidecarError: INVALID_ARGUMENT if that takes too much work.
        """
        with translated(self._field):
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        """Raise the error that the library's matcher has stopped with, if it has."""
        if self._matcher.is_error():
            message = self._matcher.get_error().removesuffix("\n<non-verbose/>").partition("\n<backtrace>")[0]
            raise invalid(self._field, f"cannot be enforced: {message[:MOST_MESSAGE]}")
