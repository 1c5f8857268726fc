"""
The bill of rows that come to share a batch: prompts that are computed, and sequences that are paused.

Rows of a batch have the room of the longest, so some of them take more than they would alone. Which rows share one
follows from their lengths (`scheduling/padding.py`), in the order in which prompts are computed. That is not known
before. So the longest are placed first, which pads the most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as Rows
from itertools import accumulate, chain
from typing import NamedTuple

from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.prefill import SHORT
from daemon.engine.execution.row_bills import JOINED, MOVED, Bill, BilledRow, batch_kv, decoding_bill
from daemon.engine.scheduling.padding import fits
from daemon.engine.scheduling.prefill_plan import PASS_TOKENS
from daemon.kv.mlx.workspace import PROBE


class Part(NamedTuple):
    """
    Rows that come to a batch together, or are one.

    Attributes:
        rows: A prompt, once for each sample, or the rows of a batch.
        kv: Bytes of KV that they are billed apart from others.
        prompt: Whether they are a prompt.
    """

    rows: list[BilledRow]
    kv: int
    prompt: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest row, without those of a shared prefix."""
        return max(row.held - row.base for row in self.rows)


def joining_bill(loaded: LoadedModel, parts: Rows[Part], width: int) -> Bill:
    """
    Return what rows of one model take beside their own bills because they share passes or come to share a batch.

    Args:
        loaded: The model.
        parts: Prompts, and those that decode. All read a prefix together, or none does.
        width: Tokens of a pass.
    """
    if not loaded.joinable:
        return Bill(0, 0)
    groups = [group for group in _groups(parts) if len(group) > 1]
    works = [_work(loaded, group, width) for group in groups]
    return Bill(sum(_padding(loaded, group) for group in groups), max(works, default=0))


def _groups(parts: Rows[Part]) -> list[list[Part]]:
    """Part rows by the batch that they may come to share."""
    groups = [[part] for part in parts if len(part.rows) > 1 and not part.prompt]
    loose = [part for part in parts if len(part.rows) == 1 or part.prompt]
    for part in sorted(loose, key=lambda part: part.longest, reverse=True):
        group = next((group for group in groups if _may_share([*group, part])), None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    return groups


def _may_share(parts: Rows[Part]) -> bool:
    """Whether rows may share a batch: now, or when those that decode have used up their room."""
    now = [row.held - row.base for part in parts for row in part.rows]
    then = [row.held - row.base + row.room * (not part.prompt) for part in parts for row in part.rows]
    return fits(now) or fits(then)


def _padding(loaded: LoadedModel, group: Rows[Part]) -> int:
    """Return the bytes that rows take beside their own because they share a batch."""
    kv = iter(batch_kv([loaded], [row for part in group for row in part.rows]))
    return sum(max(0, sum(next(kv) for _ in part.rows) - part.kv) for part in group)


def _work(loaded: LoadedModel, group: Rows[Part], width: int) -> int:
    """Return the bytes of a moment that a pass over several prompts takes, or a join."""
    rows = list(chain.from_iterable(part.rows for part in group))
    prompts = [part.rows[0] for part in group if part.prompt]
    layers = [loaded.layout.layer_bytes(row.held + row.room, reserved=True) for row in rows]  # no prefix has windows
    if loaded.layout.latent:
        layers = [loaded.layout.layer_bytes(row.held - row.base + row.room) for row in rows]
    # What their steps take then includes a copy of a layer of all rows: full attention joins without padding.
    joined = max(int(JOINED * sum(layers)), decoding_bill([loaded], rows).work)
    if not prompts or not loaded.layout.parts.resumes_anywhere:
        return joined  # windows and states share no pass
    own = [loaded.layout.layer_bytes(row.held - row.base + row.room) for row in prompts]
    tokens = _most_together([min(SHORT, row.held - row.done) for row in prompts], width)
    # A row sees no tokens of the others, unless all read a prefix: then they are one row behind it, as one array.
    base, longest = max(row.base for row in prompts), max(row.held for row in prompts)
    behind = base and not loaded.layout.latent
    seen = base + sum(row.held - row.base for row in prompts) if behind else longest
    shared = loaded.work.bytes(tokens, seen - tokens) + int(MOVED * sum(own))
    shared += int(JOINED * loaded.layout.layer_bytes(seen)) if behind else 0  # and MLX prepares others
    if loaded.layout.latent:
        # A layer of each row is built as one array and expanded, however few tokens of the row are computed.
        expanded = loaded.work.bytes(PROBE, longest) - loaded.work.bytes(PROBE)
        shared += sum(loaded.layout.layer_bytes(row.base) + expanded for row in prompts)
    return max(shared, joined)


def _most_together(lengths: Rows[int], width: int) -> int:
    """
    Return the most tokens of a pass that prompts may share, padding included.

    Args:
        lengths: What each has left.
        width: Most tokens of the pass, without padding.
    """
    ordered = sorted(lengths)
    sums = list(accumulate(ordered))
    most = 0
    for longest in set(ordered):
        others = min(bisect_right(ordered, longest) - 1, bisect_right(sums, width - longest))
        most = max(most, longest * min(1 + others, max(1, width // max(1, longest - PASS_TOKENS))))
    return most
