"""The shape of a chat template: what it reads, which turns it takes, and what it leaves out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SWITCHES: Mapping[str, tuple[Any, Any]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "enable_reasoning": (True, False),
    "do_reasoning": (True, False),
    "reasoning": (True, False),
    "thinking_mode": ("enabled", "disabled"),
    "thinking_budget": (-1, 0),
}
"""
Names under which templates read whether the model may reason, and their values for yes and no.

The first that a template reads counts. Sources: the templates of Qwen 3, DeepSeek V3.1, Granite, Command A, MiniMax M3,
Seed OSS.
"""
FLAGS = "/think"
"""No variable, but a word in the system's text; its opposite is `/no_think`. Source: Nemotron Nano 2's template."""
BLOCKS = "content"
"""Not a key of its own: reasoning is a block of the content, as in Mistral's templates."""


@dataclass(frozen=True, slots=True)
class TemplateShape:
    """
    What a template takes. The defaults are those of a template that takes everything as the OpenAI API has it.

    Attributes:
        variables: Names that the template reads; None if it is code and no template, so that they are not known.
        switch: The key of `SWITCHES` that tells it whether the model may reason, or `FLAGS`; None if nothing does.
        text_arguments: Whether the arguments of a call are JSON text, and not a mapping.
        call_content: The content of a turn that has calls and no text: "empty", "none" (null) or "missing".
        short_ids: Whether ids of calls need nine letters or digits.
        repeated_ids: Whether a later call may have the id of an earlier one.
        reasoning_key: The key of a turn's reasoning, or `BLOCKS`.
        joined_reasoning: Whether a turn with calls has room for reasoning or text, but not for both.
        split_turns: Whether a turn with text and calls has to become two turns.
        developer: Whether the template has a meaning for the role `developer`.
        system: Whether a conversation may begin with a system turn.
        systems: Whether it may begin with several.
        late_system: Whether a system turn may stand anywhere, and is written at its place.
        user_runs: Whether user turns may follow each other, and those of the assistant.
        bare_schemas: Whether the schema of a tool may be without `properties`.
        type_lists: Whether the type of an argument may be a list of types.
        leaves_out: What the template drops without a word; keys of `LEFT_OUT`.
        before_reasoning, after_reasoning: White space that the template writes around reasoning.
        before_text: White space that it writes between reasoning and text.
        after_text: White space that it writes between text and calls.
    """

    variables: frozenset[str] | None = None
    switch: str | None = "enable_thinking"
    text_arguments: bool = False
    call_content: str = "empty"
    short_ids: bool = False
    repeated_ids: bool = True
    reasoning_key: str = "reasoning_content"
    joined_reasoning: bool = False
    split_turns: bool = False
    developer: bool = True
    system: bool = True
    systems: bool = True
    late_system: bool = True
    user_runs: bool = True
    bare_schemas: bool = True
    type_lists: bool = True
    leaves_out: frozenset[str] = frozenset()
    before_reasoning: str = ""
    after_reasoning: str = ""
    before_text: str = ""
    after_text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as values of JSON."""
        variables = None if self.variables is None else sorted(self.variables)
        return {**asdict(self), "variables": variables, "leaves_out": sorted(self.leaves_out)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TemplateShape:
        """Return the shape that `to_json` wrote."""
        variables = None if value["variables"] is None else frozenset(value["variables"])
        return TemplateShape(**{**value, "variables": variables, "leaves_out": frozenset(value["leaves_out"])})


LEFT_OUT = {
    "calls": "tool_calls",
    "further_calls": "tool_calls",
    "text_beside_calls": "content",
    "calls_beside_text": "tool_calls",
    "old_text_beside_calls": "content",
    "system_before_calls": "content",
    "answers": "content",
    "reasoning": "reasoning_content",
    "late_reasoning": "reasoning_content",
    "old_reasoning": "reasoning_content",
    "reasoning_of_split": "reasoning_content",
}
"""
What a template may drop, each with the field of the message that is lost.

`further_calls` are all but the first call of a turn. Of a turn with text and calls, `text_beside_calls` or
`calls_beside_text` may be lost, or the text once a later turn of the user has come. `answers` are those of tools.
`system_before_calls` is the system's text if the last turn is not the user's. `reasoning` is never written;
`late_reasoning` is that of turns after the last user turn, `old_reasoning` that of turns before it, and
`reasoning_of_split` that of a turn that becomes two.
"""


def with_reasoning(turn: Mapping[str, Any], reasoning: str, key: str) -> dict[str, Any]:
    """Return a turn with its reasoning under a key, or as the first block of its content."""
    if key != BLOCKS:
        return {**turn, key: reasoning}
    text = turn.get("content")
    rest = [{"type": "text", "text": text}] if text else []
    return {**turn, "content": [{"type": "thinking", "thinking": reasoning}, *rest]}
