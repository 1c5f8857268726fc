"""
A row of a batch: a running sequence, with a token that the model is fed next.

States of its pending token, under `Batch`:

    Given ----------- advance() ---------> Sampled, not reported ---- advance() ---> reported, the next one is pending
      the last token of a prompt             |
                                             | firsts(): a first token is reported before its pass begins
                                             v
                                           Sampled, reported -------- advance() ---> the next one is pending
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from daemon.engine.execution.sampling import Sampled, Sampler
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.speculation import Guesser
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.engine.scheduling.governor import Source


@dataclass(frozen=True, slots=True)
class Given:
    """
    The last token of a prompt: it is fed like a sampled token, and never reported.

    Attributes:
        token: Its id, shape [1].
    """

    token: mx.array

    @property
    def id(self) -> int:
        """Its id."""
        return int(self.token.item())  # type: ignore[arg-type]


@dataclass(slots=True, eq=False)
class Row:
    """
    A running sequence.

    Attributes:
        sequence: The request.
        sampler: The request's sampler.
        pending: The token that is fed next; the device may still compute it.
        reported: Whether `pending` was returned to the decoder.
        guesser: Guesses its tokens; None if nothing does.
    """

    sequence: Sequence
    sampler: Sampler
    pending: Sampled | Given
    reported: bool = False
    guesser: Guesser | None = None

    @property
    def apart(self) -> bool:
        """Whether it shares no pass with other rows."""
        return self.guesser is not None and self.guesser.apart

    @property
    def unfed(self) -> list[int]:
        """Tokens before the pending one that the model is to be fed again."""
        return [] if self.guesser is None else self.guesser.unfed

    @property
    def length(self) -> int:
        """Tokens of the sequence so far, without those of a shared prefix."""
        return len(self.sequence.prompt) + len(self.sequence.generated) - self.sequence.kv.base

    @property
    def reach(self) -> int:
        """Tokens that its KV shall have room for, as it is billed."""
        done = len(self.sequence.generated)
        return len(self.sequence.prompt) + done + min(self.sequence.request.max_tokens - done, DECODE_ROOM)

    @property
    def ends(self) -> bool:
        """Whether the pending token is the last that the sequence may have."""
        sampled = len(self.sequence.generated) + (self.unreported is not None)
        return isinstance(self.pending, Sampled) and sampled >= self.sequence.request.max_tokens

    def offer(self, most: int, longest: int = 0) -> tuple[Source, int] | None:
        """Return what may guess the tokens after the pending one, and how many of at most so many; None if nothing."""
        self.correct()
        if self.guesser is None:
            return None
        left = self.sequence.request.max_tokens - len(self.sequence.generated) - (self.unreported is not None)
        return self.guesser.offer(min(left, most + 1), longest)

    def guess(self, offered: tuple[Source, int] | None) -> list[int]:
        """Guess the tokens after the pending one, which may be waited for."""
        if offered is None:
            return []
        assert self.guesser is not None
        return self.guesser.guess(lambda: self.pending.id, offered[1], known=self.unreported is None)

    def correct(self) -> None:
        """Sample the pending token again, if the token before it, which is known now, demands a mask."""
        again = self.sampler.again()
        if again is not None:
            self.pending = again

    @property
    def unreported(self) -> Sampled | None:
        """The pending token, if it was sampled and not reported."""
        return self.pending if isinstance(self.pending, Sampled) and not self.reported else None
