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
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.engine.memory.memory_budget import DECODE_ROOM
from daemon.kv.forks import Beginning, fork
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx import sharing
from daemon.kv.mlx.layout import capacity_for
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.prefix_cache import PrefixCache


class Readers:
    """
    The sequences that run, as readers of prefixes that they have in common.

    Before a sequence begins, its outlook (`SequenceKV.outlook`) says for its bill how much it will read together with
    others. When it begins, `common` lets it read as much.

    Args:
        running: Returns all sequences that prefill or decode.
        decoders: Those that decode, by model.
        prefixes: The prefix cache.

    Attributes:
        copied: Tokens since the start that were copied to become part of a shared prefix.
    """

    def __init__(
        self, running: Callable[[], Iterable[Sequence]], decoders: Mapping[ModelKey, Decoder], prefixes: PrefixCache
    ) -> None:
        self._running = running
        self._decoders = decoders
        self._prefixes = prefixes
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

    def update_outlook(self, sequence: Sequence) -> None:
        """
        Foresee for its bill how many tokens a sequence that has not begun will read together with others.

        Tokens that are stored count: this sequence and the other one lease them here, so nothing evicts them before the
        lookup. Tokens that the other one has still to compute count as well; `correct_outlook` checks them. If neither
        has begun, only the later one is billed for less. The sum is the same whichever begins first.
        """
        for kv in sequence.kvs:
            kv.outlook.tokens, kv.outlook.alike = 0, {}
            for other, before in self._alike(sequence, kv) if kv.reads and kv.loaded.layout.reusable else ():
                common = fork(_beginning(other, before), _beginning(sequence, kv))
                leased = self._leased(sequence, kv, other, before, common)
                if not kv.loaded.shares:
                    continue  # it copies what is leased, and has that much less to compute
                tokens = max(leased, common if self._to_come(kv, before, common) else 0)
                readable = _readable(_stops(before), tokens) if tokens >= sharing.LEAST_SHARED else 0
                kv.outlook.tokens = max(kv.outlook.tokens, readable)
                kv.outlook.promised = max(kv.outlook.promised, readable if readable > leased else 0)
                if readable:
                    kv.outlook.alike[before] = readable

    def correct_outlook(self, sequence: Sequence) -> bool:
        """
        Replace what was foreseen of a sequence that begins now by what it can read indeed, if it counted on others.

        Returns:
            Whether others have computed less than it counted on, so that it takes more than it was billed for.
        """
        fell_short = False
        for kv in sequence.kvs:
            if promised := kv.outlook.promised:
                kv.release_lease()
                kv.lease_ahead(sequence.request, self._prefixes)
                best = self._best(kv, kv.sharable(sequence.prompt))
                kv.outlook.tokens = 0 if best is None else _readable(_stops(best[2]), best[0])
                fell_short = fell_short or kv.outlook.tokens < promised
        return fell_short

    def drop_outlook(self, sequence: Sequence) -> None:
        """Give back what was leased for a sequence that does not begin now, and count on no others for it."""
        for kv in sequence.kvs:
            kv.release_lease()
            kv.outlook.promised = 0

    def distrust(self, sequence: Sequence) -> None:
        """Drop the outlook of a sequence; it counts on no others any more, as they computed less than it counted on."""
        for kv in sequence.kvs:
            kv.outlook.trusts = False
        self.drop_outlook(sequence)

    def renew_outlooks(self) -> None:
        """Foresee anew what sequences that have not begun will read together: another one has begun, or has ended."""
        for sequence in self._running():
            if any((kv.prefix is not None or kv.outlook.promised) and not kv.begun for kv in sequence.kvs):
                self.update_outlook(sequence)

    def common(self, kv: SequenceKV, prompt: list[int]) -> SharedPrefix | None:
        """
        Return the prefix that a prompt can read, instead of copying it; None if no sequence has enough of it.

        Args:
            kv: The prompt's KV, which has leased what it can reuse.
            prompt: The tokens that it may share.
        """
        best = self._best(kv, prompt)
        if best is None:
            return None
        tokens, sequence, holder = best
        return self._shared(sequence, holder, tokens)

    def _best(self, kv: SequenceKV, prompt: list[int]) -> tuple[int, Sequence, SequenceKV] | None:
        """Return the running sequence with the most of a prompt's match, and how much; None if none has enough."""
        if not kv.loaded.shares or kv.prefix is None or kv.prefix.tokens < sharing.LEAST_SHARED:
            return None
        holding = self._holding(kv, prompt[: kv.prefix.tokens])
        best = max(holding, key=lambda found: (found[0], found[2].base), default=None)
        return None if best is None or best[0] < sharing.LEAST_SHARED else best

    def _alike(self, sequence: Sequence, kv: SequenceKV) -> Iterator[tuple[Sequence, SequenceKV]]:
        """Yield each KV that comes before a KV that has not begun, and begins with the same tokens."""
        beginning = sequence.prompt[: sharing.LEAST_SHARED]
        for other, before in self._before(sequence, kv):
            if other.prompt[: sharing.LEAST_SHARED] == beginning and before.reads:
                yield other, before

    def _leased(self, sequence: Sequence, kv: SequenceKV, other: Sequence, before: SequenceKV, common: int) -> int:
        """Return how many tokens in common with another KV are stored, and leased from now on."""
        kv.lease_ahead(sequence.request, self._prefixes)
        if before.begun:
            if before.held >= common > (kv.prefix.tokens if kv.prefix is not None else 0):
                kv.lease_ahead(sequence.request, self._prefixes, anew=True)  # it has stored more since
            return 0 if kv.prefix is None else min(kv.prefix.tokens, common, before.sharing_limit)
        before.lease_ahead(other.request, self._prefixes)
        return 0 if kv.prefix is None or before.prefix is None else kv.prefix.in_common(before.prefix)

    def _to_come(self, kv: SequenceKV, before: SequenceKV, common: int) -> bool:
        """Whether a KV waits until another one has computed, and stored, what both have in common."""
        stores = before.writes and self._prefixes.enabled and common >= self._prefixes.min_prefix_len
        if not (stores and kv.outlook.trusts):
            return False
        return common > before.held or kv.loaded.layout.parts.resumes_anywhere

    def _before(self, sequence: Sequence, kv: SequenceKV) -> Iterator[tuple[Sequence, SequenceKV]]:
        """Yield each other KV of the namespace that has begun, or is to begin and came before a sequence."""
        later = False
        for other in self._running():
            later = later or other is sequence
            for before in other.kvs:
                alike = before.namespace == kv.namespace and before.loaded is kv.loaded
                if alike and before is not kv and (before.begun or not later):
                    yield other, before

    def _holding(self, kv: SequenceKV, reusable: list[int]) -> Iterator[tuple[int, Sequence, SequenceKV]]:
        """Yield each other KV of the namespace with the number of tokens that both have in common, whole blocks."""
        for sequence in self._running():
            for other in sequence.kvs:
                if other is not kv and other.namespace == kv.namespace and other.loaded is kv.loaded and other.held:
                    held = sequence.tokens_in(other)[: other.sharing_limit]
                    yield _in_common(reusable, held) // BLOCK_TOKENS * BLOCK_TOKENS, sequence, other

    def _shared(self, sequence: Sequence, holder: SequenceKV, tokens: int) -> SharedPrefix | None:
        """Return the prefix that a holder reads up to a token, which is made or cut first if that is worth it."""
        path = holder.common.path if holder.common is not None else []
        stop = _readable(_stops(holder), tokens)
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


def _stops(kv: SequenceKV) -> list[int]:
    """Return the ends, in tokens, of the prefixes that a KV reads; where it has not begun, of what it is to read."""
    return [kv.outlook.tokens] if kv.common is None else [prefix.stop for prefix in kv.common.path]


def _readable(stops: Iterable[int], tokens: int) -> int:
    """Return how many of the tokens in common with a KV can be read: behind an end of a prefix, few are copied."""
    read = max((stop for stop in stops if stop <= tokens), default=0)
    return tokens if tokens - read >= sharing.LEAST_SHARED else read


def _beginning(sequence: Sequence, kv: SequenceKV) -> Beginning:
    return Beginning(kv.namespace, kv.sharable(sequence.prompt))


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
