"""The mask of a free answer: reasoning ends at its budget, and calls that have begun keep to their grammar."""

from __future__ import annotations

import mlx.core as mx
import structlog

from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.detokenizer import Decode, streaming
from daemon.engine.structured_output.call_guard import CallGuard
from daemon.engine.structured_output.matcher import GrammarMatcher
from daemon.engine.structured_output.token_mask import expanded
from daemon.shared.errors import SidecarError
from daemon.shared.log_fields import cause

# When the host has to know a token
#
# The device samples token n + 1 while the host reads token n. A mask for token n + 1 that depends on token n makes the
# host wait for it, which costs speed. So the mask waits only where it has to:
#
#   state                                  known      the mask of the next token
#   text or reasoning                      n - 1      none; if token n is the mark of a call, which the device finds out
#                                                     by itself: what the grammar allows after the mark
#   text that ends like a mark's beginning n          none, or that of the grammar if a mark is complete
#   a call                                 n          that of the grammar
#   the last token of the budget           n          none, or the mark that ends the reasoning
#
# A second parser (`scout`) follows the answer as the parser of the answer does, without its stop strings.

_QUOTES = ("`", '"', "'")
"""A mark behind one of these is spoken about."""

log = structlog.get_logger()


class FreeMask:
    """
    Follows one completion without a form.

    Args:
        vocab: Width of the logits.
        scout: A parser of the answer that nothing else uses.
        decode: Returns the text of ids, with all marks.
        guard: The grammar of its calls; None if they are free.
        budget: Most tokens of its reasoning, without its marks; None if it may take any number.
        end: Ids of the mark that ends the reasoning.
    """

    def __init__(
        self,
        vocab: int,
        scout: AnswerParser,
        decode: Decode,
        *,
        guard: CallGuard | None = None,
        budget: int | None = None,
        end: tuple[int, ...] = (),
    ) -> None:
        self._vocab = vocab
        self._scout = scout
        self._detokenizer = streaming(decode)
        self._guard = guard
        self._left = budget
        self._end = end
        self._unread: list[mx.array] = []
        """Sampled tokens that the host does not know yet, at most one between two calls of `mask`."""
        self._forced: tuple[int, ...] = ()
        """Tokens of the mark that have to be written now."""
        self._call: GrammarMatcher | None = None
        """The grammar of the call that is being written, at its position."""
        self._blocks = 0
        """Blocks of calls that have begun and are known here."""
        self._after_mark: dict[int, mx.array] = {}

    @property
    def waits(self) -> bool:
        """Whether the next mask depends on the token that was sampled last."""
        undecided = self._guard is not None and self._scout.undecided
        return self._call is not None or undecided or self._near_budget(1)

    def mask(self, last: mx.array | None) -> mx.array | None:
        """Return the tokens that may follow, see `Constraint.mask`."""
        if last is not None:
            self._unread.append(last)
        while len(self._unread) > 1 or (self._unread and self.waits):
            self._read(int(self._unread.pop(0).item()))  # type: ignore[arg-type]
        if not self._forced and self._near_budget(0):
            self._forced, self._left = self._end, None
        if self._forced:
            token, self._forced = self._forced[0], self._forced[1:]
            return mx.arange(self._vocab) == token
        if self._call is not None:
            return self._allowed()
        return self._if_mark() if self._unread else None

    def _near_budget(self, unknown: int) -> bool:
        """Whether the reasoning may reach its budget with `unknown` more tokens."""
        if self._left is None:
            return False
        if self._scout.reasoning:
            return self._left <= unknown
        return unknown > 0 and not self._scout.text_began  # reasoning may begin with the next token

    def _read(self, token: int) -> None:
        """Follow a token that is known now."""
        if self._call is not None:
            self._step(self._call, token)
        if self._scout.reasoning and self._left is not None:
            self._left -= 1
        self._scout.add(self._detokenizer.add(token))
        if self._scout.blocks > self._blocks:
            self._blocks = self._scout.blocks
            if self._guard is not None:
                self._enter(self._guard, self._scout.call_text)

    def _enter(self, guard: CallGuard, block: str) -> None:
        """Keep a block of calls to its grammar from here on, unless what was written of it is none."""
        if self._scout.last_text in _QUOTES or not block:
            return
        try:
            self._call = guard.entered(block)
        except SidecarError as error:
            self._give_up(error)

    def _step(self, call: GrammarMatcher, token: int) -> None:
        try:
            call.take(token)
            if call.complete:
                self._call = None
        except SidecarError as error:
            self._give_up(error)

    def _allowed(self) -> mx.array | None:
        assert self._call is not None
        try:
            return expanded(self._call.allowed(), self._vocab)
        except SidecarError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: SidecarError) -> None:
        """Go on without a grammar: it takes too much work, and the parser reads the call as well as it can."""
        log.info("call_grammar_given_up", error=cause(error))
        self._call = self._guard = None

    def _if_mark(self) -> mx.array | None:
        """Return the mask for a token that follows one that is not known yet and may be the mark of a call."""
        if self._guard is None or self._scout.reasoning or self._scout.last_text in _QUOTES:
            return None
        mask = None
        for token, bits in self._guard.marks.items():
            if token not in self._after_mark:
                self._after_mark[token] = expanded(bits, self._vocab)
            other = self._unread[-1] != token
            allowed = mx.logical_or(other, self._after_mark[token])
            mask = allowed if mask is None else mx.logical_and(mask, allowed)
        return mask
