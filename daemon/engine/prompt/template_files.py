"""Reads the chat templates of a checkpoint from all files that may hold one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon.shared.errors import invalid

FOLDER = "additional_chat_templates"
_DEFAULT, _WITH_TOOLS = "default", "tool_use"


class ChatTemplates:
    """
    The chat templates of a model by name; most models have one, which is called "default".

    Args:
        named: Source of each template.
    """

    def __init__(self, named: Mapping[str, str]) -> None:
        self._named = dict(named)

    def __bool__(self) -> bool:
        return bool(self._named)

    @property
    def widest(self) -> str | None:
        """The template that tells how the model writes calls: the one for tools; None if there is no template."""
        return self._find(tools=True)

    @property
    def sources(self) -> str:
        """All templates, one after the other."""
        return "\n".join(self._named.values())

    def chosen(self, *, tools: bool) -> str:
        """
        Return the template of a conversation, with or without tools.

        Raises:
            SidecarError: INVALID_ARGUMENT if there are several, and none is the usual one.
        """
        template = self._find(tools=tools)
        if template is None:
            names = ", ".join(sorted(self._named))
            raise invalid("chat", f"has no template: those of this model are for {names}; send text instead")
        return template

    def _find(self, *, tools: bool) -> str | None:
        only = next(iter(self._named.values())) if len(self._named) == 1 else None
        names = (_WITH_TOOLS, _DEFAULT) if tools else (_DEFAULT,)
        return next((self._named[name] for name in names if name in self._named), only)


def chat_templates(path: Path) -> ChatTemplates:
    """
    Return the templates of a model.

    `chat_template.jinja` and the files of `additional_chat_templates` come first, as in transformers. Without a
    default among them, those of `tokenizer_config.json` are added, or those of `chat_template.json`.

    Args:
        path: A private copy of the model's small files.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file is no JSON, or no UTF-8.
    """
    named = {file.stem: file.read_text("utf-8") for file in sorted((path / FOLDER).glob("*.jinja"))}
    file = path / "chat_template.jinja"
    if file.is_file():
        named[_DEFAULT] = file.read_text("utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        if _DEFAULT not in named:
            named = {**_of_json(path / name), **named}
    return ChatTemplates(named)


def _of_json(file: Path) -> dict[str, str]:
    """Return the templates in a file of JSON: a text, a list of names with templates, or names as keys."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    value: Any = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(value, str):
        return {_DEFAULT: value}
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    entries = value.items() if isinstance(value, dict) else ()
    return {name: text for name, text in entries if isinstance(name, str) and isinstance(text, str)}
