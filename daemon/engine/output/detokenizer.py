"""Incremental detokenization: ids become text deltas of whole characters, up to the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from daemon.engine.output.token_text import TokenText
from daemon.engine.output.tool_calls import CallPiece, ToolCall

Decode: TypeAlias = Callable[[Sequence[int]], str]
"""Returns the text of ids."""

_REPLACEMENT = "\ufffd"
_CHARACTER_TOKENS = 3
"""A UTF-8 character has at most 4 bytes, so at most the last 3 tokens can be the beginning of a character."""
_MOST_INVISIBLE = 64
"""Ids without text that are kept at the beginning."""
_MOST_CONTEXT = 16
"""Ids of a text that are the context of what goes on with it."""


class Streaming(Protocol):
    """Text of ids that come one by one. The joined pieces equal the text of all ids, decoded at once."""

    def add(self, token: int) -> str:
        """Take an id and return the text that is complete now, which may be empty."""

    def flush(self) -> str:
        """Return the text that was held back; incomplete characters are replacement characters."""


def streaming(decode: Decode, before: Sequence[int] = ()) -> Streaming:
    """
    Return the stream of a decoder: its own where each token has bytes of its own, else by comparing texts.

    Args:
        decode: Returns the text of ids.
        before: Ids of the text that the stream goes on. Some decoders leave out a space at the beginning of a text.
    """
    return decode.stream(before) if isinstance(decode, TokenText) else Detokenizer(decode, before)


class Detokenizer:
    """
    Turns ids into text piece by piece, with a decoder of which nothing is known.

    The text of an id depends on the ids before it. So the ids of the last piece stay as context: a new piece is the
    difference between the texts with and without the new ids. A context has text, or else it is the whole beginning:
    many decoders treat the first token in another way.

    Args:
        decode: Returns the text of ids.
        before: Ids that come before, of which the last ones are the first context.
    """

    def __init__(self, decode: Decode, before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before[-_MOST_CONTEXT:])
        self._shown_ids = len(self._ids)
        self._shown = decode(self._ids) if self._ids else ""

    def add(self, token: int) -> str:
        """Take an id and return the text that is complete now, which may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text == self._shown:
            return self._pass_invisible()
        if not text.endswith(_REPLACEMENT):
            return self._show(len(self._ids), text)
        # Bytes that are no text never become readable; only the last few can still become a character.
        for settled in range(len(self._ids) - _CHARACTER_TOKENS, self._shown_ids, -1):
            early = self._decode(self._ids[:settled])
            if early + self._decode(self._ids[settled:]) == text:
                return self._show(settled, early)
        return ""

    def flush(self) -> str:
        """Return the text that was held back; incomplete characters are replacement characters."""
        return self._show(len(self._ids), self._decode(self._ids)) if self._ids else ""

    def _pass_invisible(self) -> str:
        """Leave ids without text out of the context, unless they are all that there is: text must follow text."""
        if self._shown or len(self._ids) > _MOST_INVISIBLE:
            self._ids.pop()
        return ""

    def _show(self, ids: int, text: str) -> str:
        """Return the new part of `text`, which the first `ids` ids decode to, and keep only its ids as context."""
        piece = text[_common_length(text, self._shown) :]
        if piece and self._decode(self._ids[self._shown_ids : ids]):
            self._ids = self._ids[self._shown_ids :]
            self._shown_ids = ids - self._shown_ids
        else:  # the new ids have no text without those before them
            self._shown_ids = ids
        self._shown = self._decode(self._ids[: self._shown_ids])
        return piece


def _common_length(left: str, right: str) -> int:
    """Return the length of the longest common beginning."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have come: its id, its log-probability, and its text alone."""

    id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """
    A generated token, or a token of a prompt that is scored.

    Attributes:
        id: Its id.
        logprob: Its log-probability; None if not asked for.
        top: The likeliest alternatives; empty if not asked for.
        text: Its text alone; empty if no log-probability was asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[Alternative, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """
    Output that may be sent.

    Attributes:
        text: Text of the answer.
        tokens: The tokens that are complete with it, or cut short by a stop string.
        reasoning: Text of the reasoning; empty unless the prompt is a conversation.
        calls: Whole tool calls; none unless the prompt is a conversation.
        call_pieces: Pieces of tool calls, those of `calls` included.
    """

    text: str
    tokens: list[Token]
    reasoning: str = ""
    calls: Sequence[ToolCall] = ()
    call_pieces: Sequence[CallPiece] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.reasoning or self.calls or self.call_pieces)


@dataclass(slots=True)
class Output:
    """
    The text of a completion, and where a stop string ends it.

    Args:
        decode: Returns the text of ids.
        stops: Stop strings. Text that could be the beginning of a stop string is held back.
        before: Ids of the text that the completion goes on; none if it begins a text.

    Attributes:
        stop_match: The stop string that ended the text; empty if none did.
    """

    decode: Decode
    stops: tuple[str, ...] = ()
    before: Sequence[int] = ()
    stop_match: str = ""
    _detokenizer: Streaming = field(init=False)
    _held: str = field(default="", init=False)
    """Decoded text that was not sent yet."""
    _undecoded: list[Token] = field(default_factory=list, init=False)
    """Tokens without complete text."""
    _waiting: list[tuple[int, int, Token]] = field(default_factory=list, init=False)
    """Decoded tokens that were not sent yet, each with the numbers of characters before its text and up to its end."""
    _decoded: int = field(default=0, init=False)
    """Characters that were decoded."""
    _sent: int = field(default=0, init=False)
    """Characters that were sent."""

    def __post_init__(self) -> None:
        self._detokenizer = streaming(self.decode, self.before)

    def add(self, token: Token) -> Piece:
        """Take a token and return the output that may be sent now. Sets `stop_match` if a stop string is complete."""
        self._undecoded.append(token)
        return self._take(self._detokenizer.add(token.id))

    def finish(self) -> Piece:
        """Return the output that was held back. Called once, at the end. Nothing follows a stop string."""
        if self.stop_match:
            return Piece("", [])
        piece = self._take(self._detokenizer.flush())
        if self.stop_match:
            return piece
        text, self._held = self._held, ""
        tokens = [token for _, _, token in self._waiting] + self._undecoded
        return Piece(piece.text + text, piece.tokens + tokens)

    def _take(self, text: str) -> Piece:
        if not text:
            return Piece("", [])
        begin, self._decoded = self._decoded, self._decoded + len(text)
        self._waiting += [(begin, self._decoded, token) for token in self._undecoded]
        self._undecoded.clear()
        self._held += text
        return self._send(self._safe_length())

    def _safe_length(self) -> int:
        """Return how many held characters may be sent: those before a stop string, or before the beginning of one."""
        # The stop string that is complete first ends the text, however it was cut into tokens; of two, the longer.
        matches = [(at + len(stop), at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if matches:
            _, at, self.stop_match = min(matches)
            return at
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stops):
                return len(self._held) - size
        return len(self._held)

    def _send(self, length: int) -> Piece:
        """
        Return that many held characters, with the tokens that are complete with them.

        A stop string may begin within a token. The token is returned with the last text: each character has its token.
        """
        text, self._held = self._held[:length], self._held[length:]
        self._sent += length
        ready = [token for begin, end, token in self._waiting if (begin if self.stop_match else end - 1) < self._sent]
        self._waiting = self._waiting[len(ready) :]
        return Piece(text, ready)
