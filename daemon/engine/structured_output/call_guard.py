"""The grammar of tool calls that a model makes of its own accord (`tool_choice` AUTO), as far as it can be kept to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.notations.notation import Notation
from daemon.engine.output.tool_calls import Tool
from daemon.engine.structured_output.call_grammar import CallGrammar
from daemon.engine.structured_output.matcher import GrammarMatcher, Vocabulary
from daemon.shared.errors import SidecarError

_ANY = {"type": "object"}
"""The schema of a tool with a schema that cannot be kept to."""


@dataclass(frozen=True, slots=True)
class CallGuard:
    """
    What is known before a request starts about the calls that it may make.

    Attributes:
        starts: For each mark that begins a block of calls, the grammar of the block.
        begins: See `Notation.sure`.
    """

    starts: Mapping[str, GrammarMatcher]
    begins: re.Pattern[str] | None = None

    def sure(self, block: str) -> bool:
        """Return whether what is written of a block can be no text. A word such as `functools` can be one."""
        return self.begins is None or self.begins.match(block) is not None

    def entered(self, block: str) -> GrammarMatcher | None:
        """Return the grammar of a block behind what is written of it; None if that is no beginning of a block."""
        for mark, start in self.starts.items():
            if block.startswith(mark):
                matcher = start.again()
                return matcher if matcher.take_text(block) else None
        return None


def call_guard(
    tools: Mapping[str, Tool], markup: ChatMarkup | None, vocabulary: Callable[[str], Vocabulary]
) -> tuple[CallGuard | None, list[str]]:
    """
    Return the guard of a request's calls, and what it cannot keep to.

    Args:
        tools: The tools that may be called, by the field of the request that has each; none need no guard.
        markup: How the model writes calls.
        vocabulary: Returns the model's tokens, given the field of the request that needs them.

    Returns:
        The guard, or None where calls are not kept to any grammar; warnings for the caller of the request.
    """
    notation = markup.calls if markup is not None else None
    if not tools or notation is None or notation.syntax is None or not notation.starts:
        return None, []
    warnings: list[str] = []
    written = notation.syntax.start
    # A model may begin a block with another mark than the usual one. What follows has no grammar then.
    marks = [mark for mark in notation.starts if mark in written or not written]
    try:
        tokens = vocabulary("chat.tools")
        grammar = CallGrammar(notation.syntax, tokens)
        kept = _kept(notation, grammar, tools, tokens, warnings)
        starts = {mark: GrammarMatcher("chat.tools", grammar.block(kept, mark), tokens) for mark in marks if kept}
    except SidecarError as error:
        return None, [f"calls are not kept to a grammar: {error.message}"]
    return CallGuard(starts, notation.sure) if starts else None, warnings


def _kept(
    notation: Notation, grammar: CallGrammar, tools: Mapping[str, Tool], tokens: Vocabulary, warnings: list[str]
) -> dict[str, Tool]:
    """Return the tools with the schemas that can be kept to; none if calls of one of them have no grammar."""
    kept: dict[str, Tool] = {}
    for field, tool in tools.items():
        if not notation.can_hold(tool.name):
            warnings.append(f"{field}.name is a name that this model's notation of calls cannot hold")
            continue
        for form in (tool, replace(tool, parameters=_ANY)):
            try:
                block = grammar.block({field: form}, notation.starts[0])
                GrammarMatcher(f"{field}.parameters_json", block, tokens)
            except SidecarError as error:
                if form is tool:
                    warnings.append(f"{error.field} is not kept to: {error.message}")
                continue
            kept[field] = form
            break
        else:
            return {}  # without it the model could not call this tool
    return kept
