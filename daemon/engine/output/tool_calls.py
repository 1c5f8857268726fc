"""Tools that a request offers, and the calls of them that a parser finds in an answer."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from daemon.engine.output.argument_types import ArgumentType, type_of
from daemon.engine.output.json_reader import quoted
from daemon.engine.output.reader import Malformed, Reader, Sink, Steps

_ID = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Nine letters and digits: Mistral's templates accept no other ids."""


@dataclass(frozen=True, slots=True)
class Tool:
    """
    A function that a request offers to the model.

    Attributes:
        name: Its name.
        description: When to use it; may be empty.
        parameters: JSON schema of its arguments; empty if the request has none.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    def declaration(self) -> dict[str, Any]:
        """Return it as chat templates and mlx-lm's parsers expect it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


def declared(tools: Sequence[Tool]) -> str:
    """Return tools as JSON text, equal for equal tools in the same order."""
    return json.dumps([tool.declaration() for tool in tools])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """
    A call that the model made.

    Attributes:
        index: Its position among the calls of the answer, from 0.
        id: The model's own name for it, or else 9 random letters and digits. No other call of the answer has it.
        name: Name of the tool.
        arguments_json: A JSON object as text.
    """

    index: int
    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """
    A piece of a call that the model is writing.

    Attributes:
        index: Position of the call among those of the answer.
        id, name: As in `ToolCall`; empty after the first piece of a call.
        arguments_json: The next part of the arguments. All parts of a whole call are its `arguments_json`.
        withdrawn: Whether the call turned out to be none. Its text follows as text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments_json: str = ""
    withdrawn: bool = False


class CallWriter:
    """
    Takes the calls that a parser reads: `begin`, `write` any number of times, `end`.

    A call that has ended stays, whatever follows. A call that has not is withdrawn if its text turns out to be none.
    The last brace of the arguments is passed on with the end of the call. Clients of an API that can withdraw nothing
    so never have whole arguments of a call that is none.

    Args:
        tools: The request's tools.
        keep: Keeps the text from the end of a call on, and returns its position.
        count: Calls that the answer had before.

    Attributes:
        tools: The request's tools.
        count: Calls that have ended.
    """

    def __init__(self, tools: Sequence[Tool], keep: Callable[[], int], count: int = 0) -> None:
        self.tools = tools
        self.count = count
        self._keep = keep
        self._calls: list[ToolCall] = []
        self._pieces: list[CallPiece] = []
        self._open: tuple[str, str] | None = None
        """Id and name of the call that has begun."""
        self._written: list[str] = []
        """Its arguments so far."""
        self._held = ""
        """The brace among them that may be the last one, and white space behind it: no piece has it yet."""
        self._ids: set[str] = set()
        """Ids of the calls so far."""

    def begin(self, name: str, id_: str = "") -> Tool:
        """
        Begin a call and return its tool.

        Raises:
            Malformed: If the request has no such tool.
        """
        tool = next((tool for tool in self.tools if tool.name == name), None)
        if tool is None:
            raise Malformed("the request has no such tool")
        # A model may write an id twice, and callers tell the results of calls apart by their ids.
        unused = id_ if id_ and id_ not in self._ids else _made_id()
        self._ids.add(unused)
        self._open = (unused, name)
        self._pieces.append(CallPiece(self.count, *self._open))
        return tool

    def write(self, arguments_json: str) -> None:
        """Add to the arguments of the call that has begun."""
        self._written.append(arguments_json)
        arguments_json = self._held + arguments_json
        sure = arguments_json.rstrip().removesuffix("}")
        self._held = arguments_json[len(sure) :]
        self._add_piece(sure)

    def end(self) -> None:
        """End the call that has begun. The text up to here is accounted for."""
        assert self._open is not None
        self._add_piece(self._held)
        self._calls.append(ToolCall(self.count, *self._open, "".join(self._written)))
        self.count += 1
        self._close()
        self._keep()

    def whole(self, name: str, arguments_json: str, id_: str = "") -> None:
        """Take a call that was read as a whole."""
        self.begin(name, id_)
        self.write(arguments_json)
        self.end()

    def withdraw(self) -> None:
        """Forget the call that has begun, if there is one."""
        if self._open is not None:
            self._ids.discard(self._open[0])
            self._pieces.append(CallPiece(self.count, withdrawn=True))
        self._close()

    def _add_piece(self, arguments_json: str) -> None:
        if arguments_json:
            self._pieces.append(CallPiece(self.count, arguments_json=arguments_json))

    def _close(self) -> None:
        self._open, self._held = None, ""
        self._written.clear()

    def take_over(self, other: CallWriter) -> None:
        """Take the calls of another writer that began to count where this one is."""
        calls, pieces = other.taken()
        self._calls += calls
        self._pieces += pieces
        self.count = other.count

    def taken(self) -> tuple[list[ToolCall], list[CallPiece]]:
        """Return the whole calls and the pieces since the last time."""
        calls, self._calls = self._calls, []
        pieces, self._pieces = self._pieces, []
        return calls, list(_joined(pieces))


def _joined(pieces: Sequence[CallPiece]) -> Iterator[CallPiece]:
    """Yield pieces of which those of one call that follow each other are one."""
    for _, same in groupby(pieces, key=lambda piece: (piece.index, piece.withdrawn)):
        first, *others = same
        yield replace(first, arguments_json="".join(piece.arguments_json for piece in (first, *others)))


def standing(pieces: Sequence[CallPiece]) -> list[CallPiece]:
    """
    Return pieces that may be sent together: those of a call that is withdrawn among them are left out.

    A call that began in earlier pieces is still withdrawn. Of one that began here nothing is left.
    """
    kept: list[CallPiece] = []
    for piece in pieces:
        begun_here = False
        while piece.withdrawn and kept and kept[-1].index == piece.index and not kept[-1].withdrawn:
            begun_here = bool(kept.pop().id)
        if not begun_here:
            kept.append(piece)
    return kept


ReadCalls = Callable[[Reader, CallWriter], Steps[None]]
"""
The parser of a notation: it reads the calls of a block from its first mark on.

It raises Malformed where the text is no call any more. What was written since the last whole call is text then.
"""


class NamedArguments:
    """
    Writes the arguments of a call from a name and a text for each, typed by the tool's schema.

    Args:
        tool: The tool.
        calls: Takes the arguments.
    """

    def __init__(self, tool: Tool, calls: CallWriter) -> None:
        self._type = type_of([tool.parameters], tool.parameters)
        self._calls = calls
        self._names: set[str] = set()
        calls.write("{")

    def name(self, name: str) -> ArgumentType:
        """
        Begin an argument and return its type.

        Raises:
            Malformed: If the call has it already.
        """
        if name in self._names:
            raise Malformed("an argument comes twice")
        self._calls.write(f'{", " if self._names else ""}"{quoted(name)}": ')
        self._names.add(name)
        return self._type.member(name)

    def value(self, json_text: str) -> None:
        """Write the value of the argument, or a part of it."""
        self._calls.write(json_text)

    def text(self, kind: ArgumentType) -> tuple[Sink, Callable[[], None]]:
        """
        Return two functions that take the text of the argument piece by piece, and its end.

        A string is passed on as it comes; another value when its text is complete.
        """
        if kind.only_text:
            self.value('"')
            return (lambda text: self.value(quoted(text))), (lambda: self.value('"'))
        pieces: list[str] = []
        return pieces.append, (lambda: self.value(kind.json_of("".join(pieces))))

    def end(self) -> None:
        """Write the end of the arguments; the call itself does not end here."""
        self._calls.write("}")


def _made_id() -> str:
    return "".join(secrets.choice(_ID) for _ in range(_ID_LENGTH))
