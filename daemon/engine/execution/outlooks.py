"""
The outlooks of sequences that have not begun: how much of its prompt each will read together with others.

A sequence gets its slot by a bill, before the prefix cache is searched for it. What it will read together with running
sequences is no memory of its own, so its bill foresees that (`SequenceKV.outlook`, `bill.py`). When the sequence
begins, `readers.py` lets it read as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.kv.forks import Beginning, fork
from daemon.kv.mlx import sharing
from daemon.kv.prefix_cache import PrefixCache

Holder = tuple[int, Sequence, SequenceKV]
"""How many tokens of a prompt a running sequence holds, the sequence, and its KV that holds them."""


class Outlooks:
    """
    Foresees what sequences that have not begun will read together with others.

    Args:
        running: Returns all sequences that prefill or decode.
        prefixes: The prefix cache.
        best: Returns the running sequence with the most of a prompt's match, given its KV and its tokens.
    """

    def __init__(
        self,
        running: Callable[[], Iterable[Sequence]],
        prefixes: PrefixCache,
        best: Callable[[SequenceKV, list[int]], Holder | None],
    ) -> None:
        self._running = running
        self._prefixes = prefixes
        self._best = best

    def update(self, sequence: Sequence) -> None:
        """
        Foresee for its bill how many tokens a sequence that has not begun will read together with others.

        Tokens that are stored count: this sequence and the other one lease them here, so nothing evicts them before the
        lookup. Tokens that the other one has still to compute count as well; `correct` checks them. If neither has
        begun, only the later one is billed for less. The sum is the same whichever begins first.
        """
        for kv in sequence.kvs:
            kv.outlook.tokens, kv.outlook.alike = 0, {}
            for other, before in self._alike(sequence, kv) if kv.reads and kv.loaded.layout.reusable else ():
                common = fork(_beginning(other, before), _beginning(sequence, kv))
                leased = self._leased(sequence, kv, other, before, common)
                if not kv.loaded.shares:
                    continue  # it copies what is leased, and has that much less to compute
                tokens = max(leased, common if self._to_come(kv, before, common) else 0)
                together = readable(before, tokens) if tokens >= sharing.LEAST_SHARED else 0
                kv.outlook.tokens = max(kv.outlook.tokens, together)
                kv.outlook.promised = max(kv.outlook.promised, together if together > leased else 0)
                if together:
                    kv.outlook.alike[before] = together

    def correct(self, sequence: Sequence) -> bool:
        """
        Replace what was foreseen of a sequence that begins now by what it can read indeed, if it counted on others.

        Returns:
            Whether others have computed less than it counted on, so that it takes more than it was billed for.
        """
        fell_short = False
        for kv in sequence.kvs:
            if promised := kv.outlook.promised:
                kv.release_lease()
                kv.lease_early(sequence.request, self._prefixes)
                best = self._best(kv, kv.sharable(sequence.prompt))
                kv.outlook.tokens = 0 if best is None else readable(best[2], best[0])
                fell_short = fell_short or kv.outlook.tokens < promised
        return fell_short

    def drop(self, sequence: Sequence) -> None:
        """Give back what was leased for a sequence that does not begin now, and count on no others for it."""
        for kv in sequence.kvs:
            kv.release_lease()
            kv.outlook.promised = 0

    def distrust(self, sequence: Sequence) -> None:
        """Drop the outlook of a sequence; it counts on no others any more, as they computed less than it counted on."""
        for kv in sequence.kvs:
            kv.outlook.trusts = False
        self.drop(sequence)

    def renew(self) -> None:
        """Foresee anew what sequences that have not begun will read together: another one has begun, or has ended."""
        for sequence in self._running():
            if any((kv.prefix is not None or kv.outlook.promised) and not kv.begun for kv in sequence.kvs):
                self.update(sequence)

    def _alike(self, sequence: Sequence, kv: SequenceKV) -> Iterator[tuple[Sequence, SequenceKV]]:
        """Yield each KV that comes before a KV that has not begun, and begins with the same tokens."""
        beginning = sequence.prompt[: sharing.LEAST_SHARED]
        for other, before in self._before(sequence, kv):
            if other.prompt[: sharing.LEAST_SHARED] == beginning and before.reads:
                yield other, before

    def _leased(self, sequence: Sequence, kv: SequenceKV, other: Sequence, before: SequenceKV, common: int) -> int:
        """Return how many tokens in common with another KV are stored, and leased from now on."""
        kv.lease_early(sequence.request, self._prefixes)
        if before.begun:
            if before.held >= common > (kv.prefix.tokens if kv.prefix is not None else 0):
                kv.lease_early(sequence.request, self._prefixes, anew=True)  # it has stored more since
            return 0 if kv.prefix is None else min(kv.prefix.tokens, common, before.sharing_limit)
        before.lease_early(other.request, self._prefixes)
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


def readable(holder: SequenceKV, tokens: int) -> int:
    """
    Return how many of the tokens in common with a KV can be read together with it.

    Behind the end of a prefix that it reads already, or is to read where it has not begun, few tokens are copied.
    """
    stops = [holder.outlook.tokens] if holder.common is None else [prefix.stop for prefix in holder.common.path]
    read = max((stop for stop in stops if stop <= tokens), default=0)
    return tokens if tokens - read >= sharing.LEAST_SHARED else read


def _beginning(sequence: Sequence, kv: SequenceKV) -> Beginning:
    return Beginning(kv.namespace, kv.sharable(sequence.prompt))
