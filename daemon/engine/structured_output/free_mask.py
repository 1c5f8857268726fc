"""The mask of a free answer: reasoning ends at its budget, and calls that have begun keep to their grammar."""

from __future__ import annotations

import mlx.core as mx
import structlog

from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.detokenizer import Decode, streaming
from daemon.engine.structured_output.call_guard import CallGuard
from daemon.engine.structured_output.constraint import Drawn
from daemon.engine.structured_output.matcher import GrammarMatcher
from daemon.engine.structured_output.token_mask import expanded
from daemon.shared.errors import SidecarError
from daemon.shared.log_fields import cause

# When the host has to know a token
#
# The device samples token n + 1 while the host reads token n. A mask for token n + 1 that depends on token n would make
# the host wait for it, which costs speed. So text and reasoning are sampled without a mask. When token n + 1 is fed to
# the model, the host knows token n. If token n began a call, or was the last of the budget, then token n + 1 is first
# sampled again from the same logits, with a mask and the same random key. Waiting would have given the same token.
#
#   state after token n - 1        token n + 1 is sampled          and sampled again
#   text, or reasoning             before token n is known         if token n began a call or used up the budget
#   a call, or the end mark        when token n is known           never
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
        request_id: The request that is logged for; None if there is none.
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
        request_id: str | None = None,
    ) -> None:
        self._vocab = vocab
        self._scout = scout
        self._detokenizer = streaming(decode)
        self._guard = guard
        self._left = budget
        self._end = end
        self._request_id = request_id
        self._unread: Drawn | None = None
        """The token that was sampled last and is not known yet; another one was sampled after it, or will be."""
        self._forced: tuple[int, ...] = ()
        """Tokens of the mark that have to be written now."""
        self._call: GrammarMatcher | None = None
        """The grammar of the call that is being written, at its position."""
        self._blocks = 0
        """Blocks of calls that have begun and are known here."""
        self._begun = False
        """Whether the last block may still be kept to its grammar."""

    @property
    def waits(self) -> bool:
        """Whether the next mask depends on the token that was sampled last."""
        return self._call is not None or bool(self._forced) or self._used_up

    def mask(self, last: Drawn | None) -> mx.array | None:
        """Return the tokens that may follow, see `Constraint.mask`."""
        self._catch_up()
        self._unread = last
        if not self.waits:
            return None
        self._catch_up()
        return self._next()

    def late_mask(self) -> mx.array | None:
        """Return the mask that the newest token should have had, see `Constraint.late_mask`."""
        if self._unread is None:
            return None
        self._catch_up()
        return self._next()

    @property
    def _used_up(self) -> bool:
        """Whether the reasoning has no token left."""
        return self._left is not None and self._left <= 0 and self._scout.reasoning

    def _catch_up(self) -> None:
        if self._unread is not None:
            self._read(self._unread.id)
            self._unread = None

    def _next(self) -> mx.array | None:
        """Return the mask of the token that follows all known ones."""
        if not self._forced and self._used_up:
            self._forced, self._left = self._end, None
        if self._forced:
            token, self._forced = self._forced[0], self._forced[1:]
            return mx.arange(self._vocab) == token
        return self._allowed() if self._call is not None else None

    def _read(self, token: int) -> None:
        """Follow a token that is known now."""
        if self._call is not None:
            self._step(self._call, token)
        if self._scout.reasoning and self._left is not None:
            self._left -= 1
        self._scout.add(self._detokenizer.add(token))
        if not self._scout.attempts.in_block:
            self._call = None  # it is read, or is none: a mark that ends a value there need not be one of its grammar
        self._begun = self._begun or self._scout.attempts.blocks > self._blocks
        self._blocks = self._scout.attempts.blocks
        if self._begun and self._guard is not None:
            self._enter(self._guard, self._scout.attempts.written)

    def _enter(self, guard: CallGuard, block: str) -> None:
        """Keep a block of calls to its grammar from here on, unless what was written of it is none."""
        spoken = self._scout.last_text in _QUOTES or not block
        sure = guard.sure(block)
        self._begun = not (spoken or sure)
        if spoken or not sure:
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
        log.info("call_grammar_given_up", request_id=self._request_id, error=cause(error))
        self._call = self._guard = None
