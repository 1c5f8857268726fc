"""Guesses of a draft model: a smaller one of the same tokens."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from daemon.cache.context_length import MOST, most_positions
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.sequence import Sequence
from daemon.engine.scheduling.governor import Source
from daemon.kv.mlx.guess_passes import Undo

_OF_DRAFT = Source(Speculation.DRAFT)


class DraftGuesses:
    """
    Guesses of a smaller model, which continues greedily.

    It is fed what it has not seen, and all of its guesses but the last. What was wrong is taken out of its cache again;
    if a layer keeps a state or a window, all guesses are, and the right ones are fed again.

    Args:
        sequence: The request, with a draft model.
    """

    def __init__(self, sequence: Sequence) -> None:
        assert sequence.draft is not None
        self._sequence = sequence
        self._draft = sequence.draft
        self._undo: Undo | None = None
        self._fed = 0
        """Guesses that it was fed."""
        loaded = self._draft.kv.loaded
        self._ids = loaded.source.vocab_size or loaded.vocab_size
        """Token ids that it has: its model may have more, behind those of the tokenizer that both have."""
        self._positions = most_positions(loaded.source.config) or MOST
        self._lost = False
        """Whether the sequence has come to an id or a position that it has not: MLX would read beyond its tables."""

    def ready(self) -> bool:
        """Return whether the draft model can read the sequence: it always guesses then."""
        return not self._lost

    def offer(self, most: int) -> tuple[Source, int]:
        """Return how many tokens the request wants of the draft model at a time, as far as they fit."""
        return _OF_DRAFT, min(self._draft.count, most)

    def guess(self, pending: Callable[[], int], most: int, *, known: bool) -> tuple[Source, list[int]]:
        """Let the draft model continue."""
        kv, sequence = self._draft.kv, self._sequence
        assert kv.cache is not None
        start = len(sequence.prompt)
        unseen = [*sequence.prompt[kv.held :], *sequence.generated[max(0, kv.held - start) :]]
        unseen += [] if known else [pending()]
        self._lost = max(unseen) >= self._ids or kv.held + len(unseen) + most - 1 > self._positions
        if self._lost:
            return _OF_DRAFT, []
        tokens, guesses = mx.array(unseen), []
        for index in range(most):
            logits = kv.loaded.model(tokens[None], cache=kv.cache)[:, -1, : sequence.loaded.vocab_size]
            tokens = mx.argmax(logits, axis=-1)
            guesses.append(tokens)
            # In a pipeline of ranks, receiving for the next pass depends on nothing: it must not come before this pass.
            mx.async_eval(tokens)
            if not index:
                kv.advanced(len(unseen), kv.cache)
                self._undo = Undo(kv.cache, whole=True)
        self._fed = most - 1
        return _OF_DRAFT, mx.concatenate(guesses).tolist()  # type: ignore[return-value]

    def checked(self, right: int) -> None:
        """Take wrong guesses out of the draft model's cache."""
        kv, fed = self._draft.kv, self._fed
        kept = min(right, fed)
        assert self._undo is not None
        if kept < fed and not kv.loaded.layout.parts.resumes_anywhere:
            kept = 0
        if kept < fed:
            self._undo.keep(fed, kept)
        kv.held += kept
        self._undo = None
