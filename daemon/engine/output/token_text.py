"""
The text of token ids, as bytes that each token adds by itself, so that text can be streamed in linear time.

A decoder of the `tokenizers` library is a list of steps. The usual steps look at one token at a time::

    ByteLevel      each character of a token stands for a byte
    Replace        "▁" becomes a space
    ByteFallback   "<0xC3>" becomes the byte C3
    Metaspace      "▁" becomes a space, and nothing in the first token
    Fuse, Strip    the text loses a space at its beginning

So a token has bytes of its own, the bytes of all tokens are the text in UTF-8, and only the beginning of the text is
special. Bytes that are no UTF-8 become replacement characters: a maximal part of a character becomes one (Unicode,
"U+FFFD Substitution of Maximal Subparts"). The library does the same, except after ByteFallback. There a lone byte
makes every byte around it a replacement character, whole characters included; here it does not.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Steps:
    """
    What a decoder does.

    Attributes:
        byte_level: Whether the characters of a token stand for bytes.
        byte_fallback: Whether tokens such as "<0xC3>" are bytes.
        replaced: Pairs of a text and what takes its place in each token.
        blank: The character that is left out of the first token; empty for none.
        stripped: A character, and how many of it the text loses at its beginning.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replaced: tuple[tuple[str, str], ...] = ()
    blank: str = ""
    stripped: tuple[str, int] = (" ", 0)


def steps_of(decoder: dict[str, Any]) -> Steps | None:
    """
    Return the steps of a decoder, given as in tokenizer.json; None if it has a step that looks at several tokens.

    The steps before Fuse work on tokens, and only Strip may follow it.
    """
    listed = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in listed]
    if kinds == ["ByteLevel"]:
        return Steps(byte_level=True)
    fuse = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    before, after = listed[:fuse], listed[fuse + 1 :]
    if any(step["type"] not in ("Replace", "ByteFallback", "Metaspace") for step in before):
        return None
    if any(step["type"] != "Strip" or step["stop"] for step in after) or len(after) > 1:
        return None
    replaced, blank = _replaced(before)
    if replaced is None:
        return None
    stripped = (after[0]["content"], after[0]["start"]) if after else (" ", 0)
    return Steps(byte_fallback="ByteFallback" in kinds, replaced=replaced, blank=blank, stripped=stripped)


def _replaced(steps: list[dict[str, Any]]) -> tuple[tuple[tuple[str, str], ...] | None, str]:
    """Return what is replaced in tokens (None if by a regular expression), and what the first token leaves out."""
    replaced, blank = [], ""
    for step in steps:
        if step["type"] == "Metaspace":
            replaced.append((step["replacement"], " "))
            blank = "" if step["prepend_scheme"] == "never" else step["replacement"]
        elif step["type"] == "Replace":
            if "String" not in step["pattern"]:
                return None, ""
            replaced.append((step["pattern"]["String"], step["content"]))
    return tuple(replaced), blank


class TokenText:
    """
    Turns ids into text, all at once (a call) or one by one (`stream`), with the same result.

    Args:
        token: Returns the token of an id; None if there is no such token, which has no text.
        steps: The steps of the tokenizer's decoder.
    """

    def __init__(self, token: Callable[[int], str | None], steps: Steps) -> None:
        self._token = token
        self._steps = steps
        self._dropped: frozenset[int] = frozenset()
        self._bytes: dict[int, bytes] = {}
        """Bytes of the ids that were seen."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Return the text of ids; incomplete characters are replacement characters."""
        stream = self.stream()
        return "".join([*map(stream.add, ids), stream.flush()])

    def stream(self, before: Sequence[int] = ()) -> TextStream:
        """Return a stream that goes on behind ids; their text is no part of its own."""
        begun = any(self.bytes_of(id_, first=False) is not None for id_ in reversed(before))
        return TextStream(self, begun=begun)

    def without(self, dropped: Collection[int]) -> TokenText:
        """Return the same, but some ids have no text, and no other id notices them. For any thread."""
        text = TokenText(self._token, self._steps)
        text._dropped, text._bytes = frozenset(dropped), self._bytes
        return text

    def bytes_of(self, id_: int, *, first: bool) -> bytes | None:
        """
        Return the bytes that an id adds to a text; None if it is as good as absent.

        Args:
            id_: The id.
            first: Whether no other id has come before it, except absent ones.
        """
        if id_ in self._dropped:
            return None
        if first and self._steps.blank:
            token = self._token(id_)
            return None if token is None else self._bytes_of_token(token.replace(self._steps.blank, ""))
        if (known := self._bytes.get(id_)) is None:
            token = self._token(id_)
            if token is None:
                return None
            known = self._bytes[id_] = self._bytes_of_token(token)
        return known

    @property
    def alike(self) -> bool:
        """Whether each token stands for the same bytes wherever it is, and any bytes can be written."""
        steps = self._steps
        return steps.byte_level or (steps.byte_fallback and not steps.blank and not steps.stripped[1])

    @property
    def stripped(self) -> tuple[str, int]:
        """A character, and how many of it a text loses at its beginning."""
        return self._steps.stripped

    def _bytes_of_token(self, token: str) -> bytes:
        steps = self._steps
        if steps.byte_level:
            # A token with a character that stands for no byte is an added token: it is its text.
            numbers = [_BYTES_OF_CHARACTERS.get(character) for character in token]
            return token.encode() if None in numbers else bytes(numbers)  # type: ignore[arg-type]
        if steps.byte_fallback and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        for text, instead in steps.replaced:
            token = token.replace(text, instead)
        return token.encode()


class TextStream:
    """
    The text of ids that come one by one; of `TokenText`. Characters are shown when they are whole.

    Args:
        text: The text of all ids.
        begun: Whether other ids come before, so that this is not the beginning of a text.
    """

    def __init__(self, text: TokenText, *, begun: bool = False) -> None:
        self._text = text
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = not begun
        self._blank, strip = text.stripped
        self._to_strip = 0 if begun else strip

    def add(self, token: int) -> str:
        """Take an id and return the text that is complete now, which may be empty."""
        added = self._text.bytes_of(token, first=self._first)
        if added is None:
            return ""
        self._first = False
        return self._trimmed(self._utf8.decode(added))

    def flush(self) -> str:
        """Return the text that was held back: a replacement character, if a character is incomplete."""
        return self._trimmed(self._utf8.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != self._blank:
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


def token_text(tokenizer: Any) -> TokenText | None:
    """
    Return the text of a tokenizer's ids, special tokens included; None if its tokens have no bytes of their own.

    Args:
        tokenizer: A tokenizer of transformers.
    """
    kind = type(tokenizer)
    if not isinstance(tokenizer, TokenizersBackend) or kind._decode is not TokenizersBackend._decode:
        return None
    if kind.decode is not PreTrainedTokenizerBase.decode:
        return None
    backend = tokenizer.backend_tokenizer
    if backend.decoder is None:
        return None
    steps = steps_of(json.loads(backend.decoder.__getstate__()))
    return None if steps is None else TokenText(backend.id_to_token, steps)


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for: printable ones for themselves (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES_OF_CHARACTERS = _bytes_of_characters()
