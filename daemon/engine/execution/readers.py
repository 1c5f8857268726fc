"""
Finds the running sequences that hold the beginning of a prompt, and lets both read one copy of it.

A prompt comes to a prefix of which it can reuse `M` tokens. The running sequence with the most of them in common may be
in three situations:

    it reads a shared prefix that ends there                 the prompt reads it as well
    it reads one that goes on beyond                         that is cut in two; both read the first part
    it holds the tokens in a cache of its own                its cache becomes a shared prefix and a tail

In none of them is the common part copied, unless the sequence is a row of a batch: then its row is copied out, once,
layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from daemon.cache.identity import ModelKey
from daemon.engine.execution.decoder import Decoder
from daemon.engine.execution.outlooks import Holder, Outlooks, readable
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import sharing
from daemon.kv.mlx.layout import capacity_for
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.prefix_cache import PrefixCache


class Readers:
    """
    The sequences that run, as readers of prefixes that they have in common.

    Args:
        running: Returns all sequences that prefill or decode.
        decoders: Those that decode, by model.
        prefixes: The prefix cache.

    Attributes:
        outlooks: What sequences that have not begun will read together with others.
        copied: Tokens since the start that were copied to become part of a shared prefix.
    """

    def __init__(
        self, running: Callable[[], Iterable[Sequence]], decoders: Mapping[ModelKey, Decoder], prefixes: PrefixCache
    ) -> None:
        self._running = running
        self._decoders = decoders
        self.outlooks = Outlooks(running, prefixes, self.best)
        self.copied = 0

    def prefixes(self) -> dict[SharedPrefix, int]:
        """Return all prefixes that are read now, each with the number of its readers."""
        readers: dict[SharedPrefix, int] = {}
        for sequence in self._running():
            for kv in sequence.kvs:
                for prefix in kv.common.path if kv.common is not None else ():
                    readers[prefix] = readers.get(prefix, 0) + 1
        return readers

    @property
    def count(self) -> int:
        """Sequences that read a prefix together with others, or did."""
        return sum(any(kv.common is not None for kv in sequence.kvs) for sequence in self._running())

    def common(self, kv: SequenceKV, prompt: list[int]) -> SharedPrefix | None:
        """
        Return the prefix that a prompt can read, instead of copying it; None if no sequence has enough of it.

        Args:
            kv: The prompt's KV, which has leased what it can reuse.
            prompt: The tokens that it may share.
        """
        best = self.best(kv, prompt)
        if best is None:
            return None
        tokens, sequence, holder = best
        return self._shared(sequence, holder, tokens)

    def best(self, kv: SequenceKV, prompt: list[int]) -> Holder | None:
        """Return the running sequence with the most of a prompt's match, and how much; None if none has enough."""
        if not kv.loaded.shares or kv.prefix is None or kv.prefix.tokens < sharing.LEAST_SHARED:
            return None
        holding = self._holding(kv, prompt[: kv.prefix.tokens])
        best = max(holding, key=lambda found: (found[0], found[2].base), default=None)
        return None if best is None or best[0] < sharing.LEAST_SHARED else best

    def _holding(self, kv: SequenceKV, reusable: list[int]) -> Iterator[Holder]:
        """Yield each other KV of the namespace with the number of tokens that both have in common, whole blocks."""
        for sequence in self._running():
            for other in sequence.kvs:
                if other is not kv and other.namespace == kv.namespace and other.loaded is kv.loaded and other.held:
                    held = sequence.tokens_in(other)[: other.sharing_limit]
                    yield _in_common(reusable, held) // BLOCK_TOKENS * BLOCK_TOKENS, sequence, other

    def _shared(self, sequence: Sequence, holder: SequenceKV, tokens: int) -> SharedPrefix | None:
        """Return the prefix that a holder reads up to a token, which is made or cut first if that is worth it."""
        path = holder.common.path if holder.common is not None else []
        stop = readable(holder, tokens)
        found = next((prefix for prefix in path if prefix.stop == stop), None)
        if found is not None:
            return found
        beyond = next((prefix for prefix in path if prefix.start < tokens < prefix.stop), None)
        if beyond is not None:
            return beyond.split(tokens)
        self._split(sequence, holder, tokens)
        return holder.common

    def _split(self, sequence: Sequence, holder: SequenceKV, tokens: int) -> None:
        """Let a prefix of `tokens` tokens take the place of the beginning of a holder's own KV."""
        request = sequence.request
        room = len(request.prompt) - tokens + min(request.max_tokens, DECODE_ROOM)

        def split(caches: list[Any], *, copy: bool) -> list[Any]:
            self.copied += copy * (tokens - holder.base)
            caches, holder.common = sharing.share(caches, tokens, capacity_for(room), copy=copy)
            return caches

        if holder.cache is not None:
            holder.cache = split(holder.cache, copy=False)
        else:
            self._decoders[sequence.model_key].replace(sequence, split)


def _in_common(tokens: list[int], others: list[int]) -> int:
    """Return how many tokens two lists begin with in common."""
    equal, most = 0, min(len(tokens), len(others))
    if tokens[:most] == others[:most]:
        return most
    while most - equal > 1:
        middle = (equal + most) // 2
        if tokens[equal:middle] == others[equal:middle]:
            equal = middle
        else:
            most = middle
    return equal
