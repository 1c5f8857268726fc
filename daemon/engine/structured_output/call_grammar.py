"""Grammars of tool calls, made from the syntax of a notation and the schemas of the tools."""

from __future__ import annotations

import json
from collections.abc import Mapping

from daemon.engine.output.notations import syntax
from daemon.engine.output.notations.syntax import CallSyntax, Part
from daemon.engine.output.tool_calls import Tool
from daemon.engine.structured_output.grammar import json_part, text_part, unforced
from daemon.engine.structured_output.matcher import Vocabulary
from daemon.shared.errors import invalid

LEAD = r"/\n{1,2}/? "
"""Line ends that models write before a call, as a regular expression of a rule."""


class CallGrammar:
    """
    Writes the grammar of calls.

    Args:
        notation: The syntax of the notation.
        tokens: The model's vocabulary.
    """

    def __init__(self, notation: CallSyntax, tokens: Vocabulary) -> None:
        self._notation = notation
        self._tokens = tokens

    def required(self, tools: Mapping[str, Tool], *, once: bool, instead: str = "") -> str:
        """
        Return the grammar of an answer that is calls and line ends.

        Args:
            tools: The tools, by the field of the request that has each.
            once: Whether there is exactly one call.
            instead: What the answer may be instead, as the body of a rule; nothing if it is empty.

        Raises:
            SidecarError: INVALID_ARGUMENT if the schema of a tool cannot be enforced.
        """
        lead = "" if self._notation.opening else LEAD
        apart = None if once else self._notation.apart
        rules = _Rules(self._tokens)
        block = self._block(rules, tools, self._notation.start, once=once)
        more = "" if apart is None else f" ({rules.text(apart)} {block})*"
        other = f" | {rules.add(instead)}" if instead else ""
        # Line ends decide nothing: models write them before calls and before text.
        return rules.written(f"start: {lead}({block}{more}{other})")

    def block(self, tools: Mapping[str, Tool], mark: str) -> str:
        """
        Return the grammar of one block of calls, from a mark that begins it to its end.

        Raises:
            SidecarError: As `required`.
        """
        start = self._notation.start
        # Some blocks begin with a header before their mark, or with no mark where they are all of an answer.
        start = start[start.index(mark) :] if mark in start else mark + start
        rules = _Rules(self._tokens)
        return rules.written(f"start: {self._block(rules, tools, start, once=False)}")

    def _block(self, rules: _Rules, tools: Mapping[str, Tool], start: str, *, once: bool) -> str:
        """Return the name of the rule of a block that begins with a text."""
        notation = self._notation
        calls = []
        for field, tool in tools.items():
            try:
                calls.append(rules.rule(notation.call(tool), f"{field}.parameters_json"))
            except syntax.Unenforceable as error:
                raise invalid(f"{field}.parameters_json", str(error)) from error
            except RecursionError as error:
                raise invalid(f"{field}.parameters_json", "has too many parts within or behind each other") from error
        call = rules.add(" | ".join(calls))
        one = notation.between is None or once
        more = "" if one or notation.between is None else f" ({rules.text(notation.between)} {call})*"
        return rules.add(f"{rules.text(start)} {call}{more} {rules.text(notation.end)}")


class _Rules:
    """Rules of one grammar. Each part of the syntax becomes one rule, so the grammar is as small as the syntax."""

    def __init__(self, tokens: Vocabulary) -> None:
        self._tokens = tokens
        self._rules: list[str] = []
        self._names: dict[int, str] = {}
        self._parts: list[Part] = []
        """The parts that have rules; they stay alive so that their ids stay theirs."""

    def written(self, start: str) -> str:
        """Return the grammar. It forces no tokens: a model writes calls in the tokens that it was trained with."""
        return unforced("\n".join([start, *self._rules]))

    def add(self, body: str, attributes: str = "") -> str:
        """Add a rule and return its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def text(self, text: str) -> str:
        """Return the part of a rule that is a text; empty for no text."""
        return text_part(text, self._tokens.special_in(text)) if text else ""

    def rule(self, part: Part, field: str) -> str:
        """Return the name of the rule of a part; `field` of the request has its schema."""
        known = self._names.get(id(part))
        if known is not None:
            return known
        self._parts.append(part)
        if isinstance(part, syntax.Later):
            name = f"later{len(self._parts)}"
            self._names[id(part)] = name
            self._rules.append(f"{name}: {self.rule(part.part, field)}")
            return name
        name = self._made(part, field)
        self._names[id(part)] = name
        return name

    def _made(self, part: Part, field: str) -> str:
        match part:
            case syntax.Text(text):
                return self.add(self.text(text) or '""')
            case syntax.Json(schema):
                return self.add(json_part(field, dict(schema)))
            case syntax.Free(end):
                return self._free(end)
            case syntax.Pattern(expression):
                return self.add(f"/{expression}/")
            case syntax.Sequence(parts):
                return self.add(" ".join(self.rule(inner, field) for inner in parts) or '""')
            case syntax.Choice(parts):
                return self.add(" | ".join(self.rule(inner, field) for inner in parts))
            case syntax.Maybe(inner):
                return self.add(f"{self.rule(inner, field)}?")
            case syntax.Several(inner, between):
                name = self.rule(inner, field)
                return self.add(f"{name} ({self.text(between)} {name})*")
        raise TypeError(type(part).__name__)

    def _free(self, end: str) -> str:
        """Return the rule of a text up to its end mark. Special tokens are no text, so they end it by themselves."""
        if self._tokens.special_in(end):
            return self.add(f"/(?s:.*)/ {self.text(end)}")
        return self.add("/(?s:.*)/", f"[suffix={json.dumps(end, ensure_ascii=False)}]")
