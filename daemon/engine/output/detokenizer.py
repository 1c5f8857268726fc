"""Output: from generated ids to text deltas. Never half a character, never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daemon.engine.output.tool_calls import ToolCall

_REPLACEMENT = "\ufffd"
_CHARACTER_TOKENS = 3
"""A UTF-8 character has at most 4 bytes, so that at most the last 3 tokens can be a beginning of one."""


class Detokenizer:
    """
    Turns ids into text piece by piece, so that the pieces together are the decoded whole.

    Args:
        decode: Returns the text of ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown_ids = 0
        self._shown = ""

    def add(self, token: int) -> str:
        """Take one id and return the text that is complete now, which may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if not text.endswith(_REPLACEMENT):
            return self._show(len(self._ids), text)
        # Bytes that are no text stay unreadable for ever; only the last few can still become a character.
        for settled in range(len(self._ids) - _CHARACTER_TOKENS, self._shown_ids, -1):
            early = self._decode(self._ids[:settled])
            if early + self._decode(self._ids[settled:]) == text:
                return self._show(settled, early)
        return ""

    def flush(self) -> str:
        """Return what was held back, as it reads now."""
        return self._show(len(self._ids), self._decode(self._ids)) if self._ids else ""

    def _show(self, ids: int, text: str) -> str:
        """Emit what is new of the text of the first `ids` ids, then keep only those as context for the next."""
        piece = text[_common_length(text, self._shown) :]
        self._ids = self._ids[self._shown_ids :]
        self._shown_ids = ids - self._shown_ids
        self._shown = self._decode(self._ids[: self._shown_ids])
        return piece


def _common_length(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token and, if asked for, its log-probability and the likeliest alternatives (id, log-probability)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be sent, and the tokens that it completes; of a conversation, also its other channels."""

    text: str
    tokens: list[Token]
    reasoning: str = ""
    calls: Sequence[ToolCall] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.reasoning or self.calls)


@dataclass(slots=True)
class Output:
    """
    One request's completion.

    Args:
        decode: Returns the text of ids.
        stops: Stop strings; text that could be the beginning of one is held back.

    Attributes:
        stop_match: The stop string that was met; empty if none was.
    """

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()
    stop_match: str = ""
    _detokenizer: Detokenizer = field(init=False)
    _held: str = field(default="", init=False)
    _undecoded: list[Token] = field(default_factory=list, init=False)
    _waiting: list[tuple[int, Token]] = field(default_factory=list, init=False)
    _decoded: int = field(default=0, init=False)
    _sent: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._detokenizer = Detokenizer(self.decode)

    def add(self, token: Token) -> Piece:
        """Take a token and return what may be sent now. Sets `stop_match` if a stop string is complete."""
        self._undecoded.append(token)
        return self._take(self._detokenizer.add(token.id))

    def finish(self) -> Piece:
        """Return what was held back; called once, at the end. Nothing follows a stop string."""
        if self.stop_match:
            return Piece("", [])
        piece = self._take(self._detokenizer.flush())
        if self.stop_match:
            return piece
        text, self._held = self._held, ""
        tokens = [token for _, token in self._waiting] + self._undecoded
        return Piece(piece.text + text, piece.tokens + tokens)

    def _take(self, text: str) -> Piece:
        if not text:
            return Piece("", [])
        self._decoded += len(text)
        self._waiting += [(self._decoded, token) for token in self._undecoded]
        self._undecoded.clear()
        self._held += text
        return self._send(self._safe_length())

    def _safe_length(self) -> int:
        """Return how much of the held text may go: up to a stop string, or to what may be the beginning of one."""
        # The first to be complete ends it, however the text was cut into tokens; of two, the longer.
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
        text, self._held = self._held[:length], self._held[length:]
        self._sent += length
        ready = [token for end, token in self._waiting if end <= self._sent]
        self._waiting = self._waiting[len(ready) :]
        return Piece(text, ready)
