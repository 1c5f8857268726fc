"""The marks of gpt-oss (the harmony format: openai/harmony, docs/format.md), which mlx-lm does not know."""

from __future__ import annotations

import re
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from daemon.engine.output.chat_markup import CALL, REASONING, SHOWN, TEXT
from daemon.engine.output.notations.detection import HARMONY_MARKS as MARKS
from daemon.engine.output.notations.harmony import CALLEE

_HEADER = "header"
_ENDS = [("<|end|>", _HEADER), ("<|start|>", _HEADER)]
_RESPONSE = {
    "initial_state": _HEADER,
    "transitions": {
        # The longest mark that ends at a character counts: what follows the header of another channel is text.
        _HEADER: [
            ("analysis<|message|>", REASONING),
            ("<|message|>", TEXT),
            (CALLEE, CALL),
            ("to=assistant", _HEADER),  # to itself, before another channel
            ("to=", SHOWN),
        ],
        REASONING: [*_ENDS, ("<|channel|>", _HEADER)],
        TEXT: [*_ENDS, ("<|channel|>", _HEADER), ("<|call|>", _HEADER)],
    },
}


_WORD = r"\s*\w{0,20}\s*"
_FORM = re.compile(
    rf"\s*(?:<\|start\|>)?{_WORD}(?:<\|channel\|>{_WORD})?(?:<\|constrain\|>{_WORD}|{_WORD})(?:<\|channel\|>{_WORD})?"
)
"""A role, a channel and a type, any of which may be missing."""


class HarmonyWrapper(TokenizerWrapper):  # type: ignore[misc]  # mlx-lm has no types
    """
    The tokenizer of a model that writes each part of its answer as a message with a header.

    Such a message is `<|start|>assistant<|channel|>CHANNEL<|message|>CONTENT<|end|>`. The channel `analysis` is
    reasoning, other channels are text, and a header with `to=functions.NAME` is a call. The prompt ends with
    `<|start|>assistant`, so the first message of an answer begins with its channel.
    """

    def __init__(self, tokenizer: Any, detokenizer_class: Any, eos_token_ids: set[int]) -> None:
        vocabulary = tokenizer.get_vocab()
        super().__init__(
            tokenizer,
            detokenizer_class,
            eos_token_ids=eos_token_ids | {vocabulary["<|return|>"], vocabulary["<|call|>"]},
            response_format=_RESPONSE,
        )

    @property
    def think_start(self) -> str:
        """The header of reasoning."""
        return "<|channel|>analysis<|message|>"

    @property
    def think_end(self) -> str:
        """The end of any message, so that of reasoning as well."""
        return "<|end|>"

    @property
    def header_form(self) -> re.Pattern[str]:
        """What a header may be, up to the mark that ends it."""
        return _FORM

    @property
    def message_ends(self) -> tuple[str, ...]:
        """The marks that end a message."""
        return ("<|end|>", "<|return|>", "<|call|>")

    @property
    def barred_tokens(self) -> tuple[int, ...]:
        """Ids of the marks that no message can hold: each begins another part of the answer, or ends it."""
        return tuple(self._tokenizer.get_vocab()[mark] for mark in MARKS if mark != self.think_end)

    @property
    def turn_tokens(self) -> tuple[int, ...]:
        """Ids that begin each message except the first, which begins in the prompt."""
        return tuple(self._tokenizer.encode("<|start|>assistant", add_special_tokens=False))

    @property
    def answer_header_tokens(self) -> tuple[int, ...]:
        """Ids of the header of the final answer, which follow `turn_tokens`."""
        return tuple(self._tokenizer.encode("<|channel|>final<|message|>", add_special_tokens=False))


def understood(wrapper: Any) -> Any:
    """Return a tokenizer that knows the marks of its model: a HarmonyWrapper if the vocabulary has its marks."""
    vocabulary = wrapper.get_vocab()
    if not all(mark in vocabulary for mark in MARKS):
        return wrapper
    return HarmonyWrapper(wrapper._tokenizer, type(wrapper._detokenizer), set(wrapper.eos_token_ids))
