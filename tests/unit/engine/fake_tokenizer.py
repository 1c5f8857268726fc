"""The parts of a Hugging Face tokenizer from which the marks of a model are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeTokenizer:
    """
    A tokenizer whose tokens are characters.

    Attributes:
        words: Tokens of its vocabulary that are marks.
        chat_template: The template; the notation of tool calls is recognised by it.
    """

    words: Sequence[str] = ()
    chat_template: str = ""
    eos_token_id: int = 0
    init_kwargs: dict[str, Any] = field(default_factory=dict)

    def get_vocab(self) -> dict[str, int]:
        """Return the marks as tokens."""
        return {word: number + 0x11_0000 for number, word in enumerate(self.words)}

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return characters as ids."""
        return [*map(ord, text)]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return ids as characters."""
        return "".join(map(chr, ids))

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """Render nothing."""
        return ""
