"""The answer of a sequence: its tokens so far, what of their text may be sent, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from daemon.engine.execution.events import FinishReason
from daemon.engine.execution.request import Request
from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.detokenizer import Output, Piece, Token
from daemon.engine.output.tool_calls import standing

log = structlog.get_logger()


@dataclass(slots=True)
class Answer:
    """
    One answer to a prompt.

    Attributes:
        request: The request; its stop ids and its number of tokens end the answer.
        output: Turns tokens into text, up to a stop string.
        parser: Splits the text into text, reasoning and calls; None if all of it is text.
        tokens: Tokens sampled so far.
        reasoning_tokens: How many of them are reasoning, its marks included.
    """

    request: Request
    output: Output
    parser: AnswerParser | None = None
    tokens: list[int] = field(default_factory=list)
    reasoning_tokens: int = 0

    def accept(self, token: Token) -> tuple[Piece, FinishReason | None]:
        """
        Take a sampled token.

        Returns:
            The piece of the answer that may be sent, and why the answer has ended, if it has.
        """
        piece, reason = self._as_text(token)
        parser = self.parser
        if parser is None:
            return piece, reason
        reasoned = parser.reasoning
        parts = parser.add(piece.text)
        self.reasoning_tokens += reasoned or parser.reasoning
        if reason is not None:
            ended = reason is FinishReason.STOP and not self.output.stop_match
            parts += parser.finish(ended=ended)
            if parser.attempts.unread:
                log.info("tool_call_unparsed", request_id=self.request.request_id, error=parser.attempts.unread)
            if ended and parser.calls:
                reason = FinishReason.TOOL_CALLS
        if parser.over:
            reason = FinishReason.TOOL_CALLS
        return Piece(parts.text, piece.tokens, parts.reasoning, parts.calls, standing(parts.pieces)), reason

    def _as_text(self, token: Token) -> tuple[Piece, FinishReason | None]:
        """Take a token as text alone; `accept` takes that apart."""
        self.tokens.append(token.id)
        if token.id in self.request.stop_ids:
            return self.output.finish(), FinishReason.STOP
        piece = self.output.add(token)
        if self.output.stop_match:
            return piece, FinishReason.STOP
        if len(self.tokens) < self.request.max_tokens:
            return piece, None
        # The rest may complete a stop string that was held back.
        rest = self.output.finish()
        reason = FinishReason.STOP if self.output.stop_match else FinishReason.LENGTH
        return Piece(piece.text + rest.text, piece.tokens + rest.tokens), reason
