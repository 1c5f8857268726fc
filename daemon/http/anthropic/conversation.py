"""Anthropic's conversations become turns for the model, in the roles that chat templates have. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from daemon.http.anthropic.blocks import (
    Block,
    RedactedThinkingBlock,
    ServerStepBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from daemon.http.anthropic.request_types import Conversation, Message
from daemon.http.anthropic.signatures import signed
from daemon.http.errors import invalid
from daemon.http.in_words import arguments, readable, said, step
from mlx_sidecar import Message as Turn
from mlx_sidecar import ToolCall

_ALLOWED: dict[str, tuple[type[Block], ...]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock, ServerStepBlock),
    "system": (TextBlock,),
}
"""The blocks that a turn of each role may have."""


@dataclass(slots=True)
class Turns:
    """
    The turns of a conversation.

    Attributes:
        turns: What the model gets.
        places: Where each of them comes from, such as "messages[2]".
        notes: What of it was left out.
    """

    turns: list[Turn] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, turn: Turn, place: str) -> None:
        """Add a turn. Turns of one side that follow each other are one, as Anthropic has it."""
        last = self.turns[-1] if self.turns else None
        if last is None or last.role != turn.role or turn.role not in ("user", "assistant"):
            self.turns.append(turn)
            self.places.append(place)
        elif turn.role == "user":
            self.turns[-1] = replace(last, content=paragraphs([last.content, turn.content]))
        else:
            self.turns[-1] = Turn(
                "assistant",
                last.content + turn.content,
                last.reasoning_content + turn.reasoning_content,
                [*last.tool_calls, *turn.tool_calls],
            )


def turns(request: Conversation) -> Turns:
    """
    Return the turns of a request.

    Raises:
        Problem: If a turn has a block that its role cannot have, or a signature that does not fit.
    """
    found = Turns()
    if system := paragraphs([block.text for block in request.system or ()]):
        found.add(Turn("system", system), "system")
    for index, message in enumerate(request.messages):
        place = f"messages[{index}]"
        _check(message, place)
        for turn in _turns(message, place, found.notes):
            found.add(turn, place)
    if not found.turns:
        raise invalid("messages", "has no content")
    return found


def paragraphs(texts: Sequence[str]) -> str:
    """Return texts as paragraphs of one; empty ones are none."""
    return "\n\n".join(text for text in texts if text)


def _check(message: Message, place: str) -> None:
    for index, block in enumerate(message.content):
        if not isinstance(block, _ALLOWED[message.role]):
            raise invalid(f"{place}.content[{index}].type", f"is {block.type}, which no {message.role} turn has")


def _turns(message: Message, place: str, notes: list[str]) -> Iterator[Turn]:
    if message.role == "assistant":
        yield _assistant(message.content, place, notes)
    elif message.role == "system":
        yield Turn("system", _text(message.content))
    else:
        for results, blocks in groupby(message.content, lambda block: isinstance(block, ToolResultBlock)):
            if results:
                yield from (_result(block) for block in blocks if isinstance(block, ToolResultBlock))
            else:
                yield Turn("user", _text(list(blocks)))


def _text(blocks: Sequence[Block]) -> str:
    return paragraphs([block.text for block in blocks if isinstance(block, TextBlock)])


def _result(block: ToolResultBlock) -> Turn:
    """Return the turn of a tool. Templates have no place for the sort of a result: its text has to tell."""
    text = _text(block.content or [])
    if block.is_error and "error" not in text[:40].lower():
        text = f"Error: {text}"
    return Turn("tool", text, tool_call_id=block.tool_use_id)


def _assistant(blocks: Sequence[Block], place: str, notes: list[str]) -> Turn:
    """Return a turn of the model. Its texts are joined as they are: so it wrote them, and so they are in the cache."""
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(_thinking(block, f"{place}.content[{index}]"))
            case ToolUseBlock(input=dict() as given):
                calls.append(ToolCall(block.id, block.name, given))
            case ToolUseBlock():
                text, unread = arguments(said(block.input))
                if unread:
                    notes.append(f"{place}.content[{index}].input is no JSON object: the model is told so")
                calls.append(ToolCall(block.id, block.name, text))
            case ServerStepBlock():
                fields = {"server": block.server_name, "tool": block.name, "input": block.input}
                texts.append(step(block.type, {**fields, "content": readable(block.content)}))
            case RedactedThinkingBlock():
                notes.append(f"{place}.content[{index}] is left out: its thinking is encrypted")
    return Turn("assistant", "".join(texts), "".join(thoughts), calls)


def _thinking(block: ThinkingBlock, place: str) -> str:
    try:
        return signed(block.thinking, block.signature or "")
    except ValueError:
        raise invalid(f"{place}.signature", "does not fit the thinking; send both as they came") from None
