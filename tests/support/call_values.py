"""Random schemas of a tool's arguments, each with a value that fits it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

PIECES = (
    "<tool_call>", "</tool_call>", "<think>", "[TOOL_CALLS]", "<function=", "</parameter>", "</arg_value>",
    "<|tool_call|>", "```", "Action:", "<|end|>", "<escape>", '<|"|>', "{", "}", "[", "]", '"', "'", "\\", "\\n",
    ", ", ": ", "\n", " ", "\t",
    "5", "null", "true", "None", "-0.5", "a", "Köln", "漢字", "🙂", "e\u0301", "\u2028", "\x7f",
    "<", ">", "/", "=", "<tool",
)  # fmt: skip
"""What texts are made of: words, marks, and characters with a meaning somewhere."""

Pair: TypeAlias = tuple[dict[str, Any], Any]
"""A schema and a value that fits it."""


def text(random: Random, barred: tuple[str, ...] = (), first: str = "") -> str:
    """Return a text of words, marks and other characters, without some texts or a beginning of them at its end."""
    while True:
        pieces = [random.choice(PIECES) for _ in range(random.randrange(8))]
        pieces += [chr(random.choice([random.randrange(0xD800), random.randrange(0xE000, 0x110000)]))][
            : random.randrange(2)
        ]
        random.shuffle(pieces)
        made = first + "".join(pieces)
        if not any(mark in made + mark[:-1] for mark in barred):
            return made


@dataclass(frozen=True, slots=True)
class Values:
    """
    Draws schemas and values that a notation can write.

    Attributes:
        random: Where they come from.
        keys: Characters of the names of arguments; None if any text is one.
        unions: Whether values may have one of several types.
        raw: Texts that no string can have, because a value without quotes ends with them.
    """

    random: Random
    keys: str | None = None
    raw: tuple[str, ...] = ()
    unions: bool = True

    def arguments(self) -> Pair:
        """Return the schema of a tool's arguments, with references or without, and arguments."""
        schema, values = self._object(0)
        if self.random.random() < 0.5:
            return schema, values
        described = schema["properties"]
        links = {name: {"$ref": f"#/$defs/d{number}"} for number, name in enumerate(described)}
        named = {f"d{number}": part for number, part in enumerate(described.values())}
        return {"type": "object", "properties": links, "$defs": named}, values

    def _key(self) -> str:
        if self.keys is None:
            return text(self.random)
        return "k" + "".join(self.random.choice(self.keys) for _ in range(self.random.randrange(6)))

    def _object(self, depth: int) -> Pair:
        members = {self._key(): self._value(depth + 1) for _ in range(self.random.randrange(4))}
        schema = {"type": "object", "properties": {name: part for name, (part, _) in members.items()}}
        return schema, {name: value for name, (_, value) in members.items()}

    def _list(self, depth: int) -> Pair:
        schema, value = self._value(depth + 1)
        return {"type": "array", "items": schema}, [value] * self.random.randrange(4)

    def _value(self, depth: int) -> Pair:
        draw = self.random.randrange(12 if depth < 3 else 9)
        draw = 8 if draw in (3, 4) and not self.unions else draw
        if draw > 8:
            return self._list(depth) if draw == 9 else self._object(depth)
        if draw > 4:
            return {"type": "string"}, self._text()
        return (self._number, self._choice, self._choice, self._union, self._union)[draw](depth)

    def _text(self, first: str = "") -> str:
        return text(self.random, self.raw, first)

    def _number(self, _: int) -> Pair:
        if self.random.random() < 0.5:
            return {"type": "integer"}, self.random.choice([0, -1, 7, 2**70, self.random.randrange(-999, 999)])
        return {"type": "number"}, self.random.choice([0.5, -1e-7, 1e300, 3.0, 8])

    def _choice(self, _: int) -> Pair:
        schema: dict[str, Any] = self.random.choice(
            [{"enum": ["5", "null", "a b", ""]}, {"const": 7}, {"type": "boolean"}, {"type": "null"}]
        )
        values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        return schema, self.random.choice(values or ([None] if schema["type"] == "null" else [True, False]))

    def _union(self, _: int) -> Pair:
        """Return a type beside strings; a text that looks like its value would be one where strings have no quotes."""
        unions: list[Pair] = [
            ({"type": ["string", "null"]}, None),
            ({"type": "string", "nullable": True}, None),
            ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 12),
        ]
        schema, other = self.random.choice(unions)
        return schema, other if self.random.random() < 0.5 else self._text(first="s")
