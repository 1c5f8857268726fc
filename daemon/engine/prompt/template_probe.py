"""
Finds the shape of a chat template by rendering small conversations with it. Runs in the template worker.

A template is a program, and what it does with a turn is found by trying. Each text of a probe is a word that no
template has, so a search in the result shows what was written, and in which order. A conversation that the template
refuses shows nothing; the property that it was for keeps its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeAlias

from jinja2 import nodes

from daemon.engine.prompt.template_shape import BLOCKS, FLAGS, SWITCHES, TemplateShape, with_reasoning

Message: TypeAlias = dict[str, Any]
Render: TypeAlias = Callable[[Sequence[Message], Mapping[str, Any]], str]
"""Renders messages with options; raises anything."""

_ARGUMENT, _VALUE, _SECOND = "qzxargument", "qzxvalue", "qzxsecond"
_ANSWER, _NEXT_ANSWER, _WORDS = "qzxanswer", "qzxnextanswer", "qzxwords"
_THOUGHT = "qzxthought"


def _tool(kind: Any = "string") -> dict[str, Any]:
    """Return a tool with a parameter of a type; with none for None."""
    described = {"qzxparameter": {"type": kind, "description": "A parameter."}}
    of_parameters = {} if kind is None else {"properties": described, "required": ["qzxparameter"]}
    function = {"name": "qzxtool", "description": "A tool.", "parameters": {"type": "object", **of_parameters}}
    return {"type": "function", "function": function}


_TOOL = _tool()
_SHORT_IDS = ("qzx4c6e8a", "qzx5d7f9b")
_LONG_IDS = ("call_qzx4c6e8aqzx4c6e8a", "call_qzx5d7f9bqzx5d7f9b")
_USER: Message = {"role": "user", "content": "qzxquestion"}
_REPLY: Message = {"role": "assistant", "content": "qzxreply"}
_LAST: Message = {"role": "user", "content": "qzxlast"}


class Probe:
    """
    One template that is tried.

    Args:
        render: Renders with it.
        source: Its text; empty if it is code and no template.
        more: Returns whether there is time for another conversation.
    """

    def __init__(self, render: Render, source: str, more: Callable[[], bool]) -> None:
        self._render = render
        self._source = source
        self._more = more
        self._always: dict[str, Any] = {}
        """Variables of every conversation of the probe."""
        self._over = False
        """Whether a conversation was not tried because the time was over."""

    def shape(self, variables: frozenset[str] | None) -> TemplateShape:
        """Return what was found. A template that refuses even a single user turn has the default shape."""
        shape = TemplateShape(variables, self._switch(variables))
        if self._text([_USER]) is None:
            self._always = {"tools": [_TOOL]}  # a template for tools may take nothing else
            if self._text([_USER]) is None:
                return shape
        return self._schemas(self._gaps(self._reasoning(self._parts(self._call(self._roles(shape))))))

    def _text(
        self, messages: Sequence[Message], *, tools: bool = False, prompt: bool = True, tool: Mapping[str, Any] = _TOOL
    ) -> str | None:
        """Return a conversation as text; None if the template refuses it, or if the time is over."""
        self._over = self._over or not self._more()
        if self._over:
            return None
        options = {"add_generation_prompt": prompt, **self._always, **({"tools": [tool]} if tools else {})}
        try:
            return self._render(messages, options)
        except Exception:  # a template can raise anything that a program can
            return None

    def _takes(self, *messages: Message) -> bool:
        """Return whether the template writes the contents of all turns, each after that of the turn before."""
        text, at = self._text(messages), 0
        for message in messages:
            at = -1 if text is None or at < 0 else text.find(message["content"], at)
        return at >= 0

    def _refuses(self, *messages: Message) -> bool:
        """Return whether a template was tried, and does not write all of a conversation in order."""
        return not self._takes(*messages) and not self._over

    def _switch(self, variables: frozenset[str] | None) -> str | None:
        """Return how the template is told whether the model may reason. A switch that is no flag has to show."""
        for name, values in SWITCHES.items():
            if variables is not None and name not in variables:
                continue
            if isinstance(values[0], bool) or self._differs({name: value} for value in values):
                return name
        texts = []
        for word in (FLAGS, f"/no_{FLAGS[1:]}"):
            text = self._text([_turn("system", f"qzxsystem {word}"), _USER])
            texts.append(text and text.replace(f"qzxsystem {word}", "qzxsystem "))
        return FLAGS if None not in texts and texts[0] != texts[1] else None

    def _differs(self, options: Iterable[dict[str, Any]]) -> bool:
        """Return whether some variables have an effect."""
        texts = set()
        for self._always in options:
            texts.add(self._text([_USER]))
        self._always = {}
        return len(texts) > 1

    def _roles(self, shape: TemplateShape) -> TemplateShape:
        """
        Find which roles the template takes.

        A template that writes any role as it is has no meaning for `developer`: its model was trained on `system`.
        """
        system, other, late = (_turn("system", f"qzx{word}") for word in ("system", "other", "late"))
        takes_system = not self._refuses(system, _USER)
        first = [system] if takes_system else []
        knows = "developer" in self._source if self._source else True
        return replace(
            shape,
            system=takes_system,
            systems=takes_system and not self._refuses(system, other, _USER),
            late_system=not self._refuses(*first, _USER, other, _REPLY, late, _LAST),
            developer=knows and not self._refuses(_turn("developer", "qzxdeveloper"), _USER),
            user_runs=not self._refuses(_USER, _LAST),
        )

    def _call(self, shape: TemplateShape) -> TemplateShape:
        """Find how a call is given: the way that shows its arguments best, and of equal ways the most usual."""
        best, most, shown = shape, -1, None
        for as_text, content in product((False, True), ("empty", "none", "missing")):
            tried = replace(shape, text_arguments=as_text, call_content=content, short_ids=True)
            text = self._text(_called(tried), tools=True)
            if text is not None and _quality(text) > most:
                best, most, shown = tried, _quality(text), text
            if most == _BEST:
                break
        if shown is None or (self._over and not most):  # the template refuses calls, and says so to the caller
            return shape
        dropped = {*([] if most else ["calls"]), *([] if _ANSWER in shown else ["answers"])}
        best = replace(best if most else shape, leaves_out=shape.leaves_out | dropped)
        long = replace(best, short_ids=False)
        return best if self._text(_called(long), tools=True) is None and not self._over else long

    def _parts(self, shape: TemplateShape) -> TemplateShape:
        """Find whether the template drops a part of a turn with text and calls, or all calls but the first."""
        if "calls" in shape.leaves_out:
            return shape
        shape = self._beside(shape)
        dropped = set()
        if shape.system:
            text = self._text([_turn("system", _WORDS), *_called(shape)[:-2]], tools=True)
            if text is not None and _WORDS not in text:
                dropped.add("system_before_calls")
        text = self._text(_called(shape, values=(_VALUE, _SECOND)), tools=True)
        if text is not None and _VALUE in text and _SECOND not in text:
            dropped.add("further_calls")
        if text is not None and _ANSWER in text and _NEXT_ANSWER not in text:
            dropped.add("answers")
        return replace(shape, leaves_out=shape.leaves_out | dropped, repeated_ids=self._takes_again(shape))

    def _takes_again(self, shape: TemplateShape) -> bool:
        """Return whether the answer of a call is written if an earlier call had its id."""
        talk = _called(shape)
        text = self._text([*talk, talk[1], {**talk[2], "content": _NEXT_ANSWER}], tools=True)
        return text is None or _ANSWER not in text or _NEXT_ANSWER in text

    def _beside(self, shape: TemplateShape) -> TemplateShape:
        """Find whether a turn has room for text and calls, or has to become two turns."""
        text = self._text(_called(shape, content=_WORDS)[:-2], tools=True)
        if text is None or (_WORDS in text and _VALUE in text):
            whole = self._text(_called(shape, content=_WORDS), tools=True)
            return shape if whole is None or _WORDS in whole else _without(shape, "old_text_beside_calls")
        apart = [_USER, _turn("assistant", _WORDS), *_called(shape)[1:]]
        two = [self._text(turns, tools=True) or "" for turns in (apart[:-2], apart)]
        if self._over:
            return shape
        if all(_WORDS in text and _VALUE in text for text in two):
            return replace(shape, split_turns=True)
        lost = {"text_beside_calls": _WORDS, "calls_beside_text": _VALUE}
        return replace(shape, leaves_out=shape.leaves_out | {what for what, word in lost.items() if word not in text})

    def _reasoning(self, shape: TemplateShape) -> TemplateShape:
        """Find under which key the template reads reasoning, and where it writes it."""
        taken = False
        if shape.switch in SWITCHES:
            self._always = {**self._always, str(shape.switch): SWITCHES[str(shape.switch)][0]}
        for key in ("reasoning_content", "reasoning", BLOCKS):
            tried = replace(shape, reasoning_key=key)
            text = self._text(_called(tried, thought=_THOUGHT)[:-2], tools=True)
            if _shows_thought(text):
                old = self._text(_called(tried, thought=_THOUGHT), tools=True)
                return self._joined(tried if old is None or _THOUGHT in old else _without(tried, "old_reasoning"))
            alone = self._text([_USER, with_reasoning(_REPLY, _THOUGHT, key)], prompt=False)
            if _shows_thought(alone):
                return self._joined(tried) if text is None else _without(tried, "late_reasoning")
            taken |= text is not None or alone is not None
        return _without(shape, "reasoning") if taken and not self._over else shape

    def _joined(self, shape: TemplateShape) -> TemplateShape:
        """Find whether reasoning and text of a turn with calls have to become one text."""
        if shape.split_turns:
            first = with_reasoning(_turn("assistant", _WORDS), _THOUGHT, shape.reasoning_key)
            text = self._text([_USER, first, *_called(shape)[1:-2]], tools=True)
            return shape if text is None or _THOUGHT in text else _without(shape, "reasoning_of_split")
        apart = self._text(_called(shape, content=_WORDS, thought=_THOUGHT)[:-2], tools=True)
        if apart is not None and _THOUGHT in apart:
            return shape
        together = self._text(_called(shape, thought=f"{_THOUGHT}\n{_WORDS}")[:-2], tools=True)
        if together is not None and _THOUGHT in together and _WORDS in together:
            return replace(shape, joined_reasoning=True, leaves_out=shape.leaves_out - {"text_beside_calls"})
        return shape

    def _gaps(self, shape: TemplateShape) -> TemplateShape:
        """Find the white space that the template writes around the reasoning and the text of a turn."""
        thinks = with_reasoning(_turn("assistant", _WORDS), _THOUGHT, shape.reasoning_key)
        for turns in ([_USER, thinks], _called(shape, thought=_THOUGHT)[:-2]):
            text = self._text(turns, tools=len(turns) > 2, prompt=False)
            if text is None or not _shows_thought(text):
                continue
            before, after = _space_around(text, _THOUGHT)
            between = _space_around(text, _WORDS)[0] if _WORDS in text else ""
            shape = replace(shape, before_reasoning=before, after_reasoning=after, before_text=between)
            break
        text = None if shape.split_turns else self._text(_called(shape, content=_WORDS)[:-2], tools=True)
        if text is None or not 0 <= text.find(_WORDS) < text.find(_VALUE):
            return shape
        return replace(shape, after_text=_space_around(text, _WORDS)[1])

    def _schemas(self, shape: TemplateShape) -> TemplateShape:
        """Find at which schemas of a tool the template fails, if it takes tools at all."""

        def takes(kind: Any) -> bool:
            return self._text([_USER], tools=True, tool=_tool(kind)) is not None or self._over

        if not takes("string"):
            return shape
        return replace(shape, bare_schemas=takes(None), type_lists=takes(["string", "null"]))


def _space_around(text: str, word: str) -> tuple[str, str]:
    """Return the white space before and behind a word."""
    before, _, behind = text.partition(word)
    return before[len(before.rstrip()) :], behind[: len(behind) - len(behind.lstrip())]


def variables_read(tree: nodes.Template, undeclared: set[str] | frozenset[str]) -> frozenset[str]:
    """
    Return the variables that a template reads from outside.

    Args:
        tree: Its syntax tree.
        undeclared: Names that jinja2 cannot prove to be set by the template. A name that is set in one branch and read
            in another is among them, so those that are set before their first reading are left out.
    """
    first: dict[str, str] = {}
    for name in _names(tree):
        first.setdefault(name.name, name.ctx)
    return frozenset(name for name in undeclared if first.get(name) != "store")


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    """Yield the names in a tree in the order of their use: the value of an assignment comes before its target."""
    if isinstance(node, nodes.Name):
        yield node
    children = list(node.iter_child_nodes())
    for child in reversed(children) if isinstance(node, nodes.Assign) else children:
        yield from _names(child)


_BEST = 4


def _quality(text: str) -> int:
    """Return how well a call's arguments were written: 0 not at all, 4 as they are."""
    if _VALUE not in text or _ARGUMENT not in text:
        return 0
    literal_none = "None" in text or "null" in text
    if f'\\"{_ARGUMENT}' in text or f"'{_ARGUMENT}'" in text:  # text within text, or a mapping of Python
        return 1
    return 3 if literal_none else _BEST


def _shows_thought(text: str | None) -> bool:
    """Return whether reasoning was written, and not as a part of a list that was printed."""
    return text is not None and _THOUGHT in text and f"'{_THOUGHT}'" not in text and f'"{_THOUGHT}"' not in text


def _without(shape: TemplateShape, what: str) -> TemplateShape:
    return replace(shape, leaves_out=shape.leaves_out | {what})


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _called(
    shape: TemplateShape, *, content: str = "", thought: str = "", values: Sequence[str] = (_VALUE,)
) -> list[Message]:
    """Return a conversation with calls and answers, in a shape; `thought` is the reasoning of the calling turn."""
    ids = _SHORT_IDS if shape.short_ids else _LONG_IDS
    calls = [
        {"id": id_, "type": "function", "function": {"name": "qzxtool", "arguments": _arguments(shape, value)}}
        for id_, value in zip(ids, values, strict=False)
    ]
    turn: Message = {"role": "assistant", "content": content, "tool_calls": calls}
    if not content and shape.call_content != "empty":
        turn["content"] = None
    if not content and shape.call_content == "missing":
        del turn["content"]
    if thought:
        turn = with_reasoning(turn, thought, shape.reasoning_key)
    answers = [
        {"role": "tool", "content": answer, "tool_call_id": id_, "name": "qzxtool"}
        for answer, id_, _ in zip((_ANSWER, _NEXT_ANSWER), ids, values, strict=False)
    ]
    return [_USER, turn, *answers, _REPLY, _LAST]


def _arguments(shape: TemplateShape, value: str) -> Any:
    arguments = {_ARGUMENT: value}
    return json.dumps(arguments) if shape.text_arguments else arguments
