"""Renders the ten conversations with a template as the engine does, and compares each with the library's own text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.corpus.conversations import CONVERSATIONS, PARTS


class RecordedTemplates(Templates):
    """
    Renders templates in workers, and remembers what they were asked for last.

    The engine may change messages on purpose into what a template takes. So the library gets the same messages.
    """

    asked: tuple[str, Sequence[Mapping[str, Any]], Mapping[str, Any]] | None = None
    answered: str | None = None

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        now: float | None = None,
    ) -> str:
        """Return a conversation as text."""
        self.asked, self.answered = (template, messages, options), None
        self.answered = super().render(template, messages, options, now)
        return self.answered


def rendered(tokenizer: Tokenizer, templates: RecordedTemplates) -> dict[str, str | None]:
    """
    Return the texts of the conversations by name; None for those that the template refuses.

    Args:
        tokenizer: A tokenizer that renders with `templates`.
        templates: Remembers what was asked for.

    Raises:
        AssertionError: If a text differs from the library's, or one of both refuses what the other takes.
    """
    texts: dict[str, str | None] = {}
    for name, chat in CONVERSATIONS.items():
        templates.asked = templates.answered = None
        refused = _refused(chat, tokenizer)
        texts[name] = templates.answered
        if templates.asked is None:
            assert refused
            assert chat.HasField("enable_thinking"), f"{name} is refused unrendered"
            continue
        assert refused == (texts[name] is None)
        assert texts[name] == _of_library(tokenizer, templates.asked), name
    return texts


def lost(texts: Mapping[str, str | None]) -> set[str]:
    """Return the parts of conversations that their texts do not have."""
    return {
        part for name, parts in PARTS.items() if (text := texts[name]) is not None for part in parts if part not in text
    }


def _refused(chat: pb.Chat, tokenizer: Tokenizer) -> bool:
    """Render a conversation and return whether it is refused."""
    try:
        render(pb.GenerateRequest(chat=chat), tokenizer)
    except SidecarError:
        return True
    return False


def _of_library(tokenizer: Tokenizer, asked: tuple[str, Any, Mapping[str, Any]]) -> str | None:
    """
    Return what transformers makes of the same messages; None if it raises.

    It leaves out keys without a value. Some templates look for such a value, so its inner renderer gets them.
    """
    library = tokenizer._wrapper._tokenizer
    template, messages, options = asked
    own = {key: value for key, value in options.items() if key not in library.special_tokens_map}
    try:
        if any(value is None for message in messages for value in message.values()):
            (text,), _ = render_jinja_template([list(messages)], chat_template=template, **options)
        else:
            text = library.apply_chat_template(list(messages), chat_template=template, tokenize=False, **own)
        return str(text)
    except Exception:  # a template is a program: it may raise anything
        return None
