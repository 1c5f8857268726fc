"""Resume points: the positions of a prompt at which later requests will want to go on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from daemon.kv.keys import BLOCK_TOKENS

INTERVAL = 2048
"""A prompt is resumable at multiples of this, of which few are chosen: far from its end, fewer and fewer."""


def resume_points(prompt: Sequence[int], cached: int, forks: Collection[int], ends: Collection[int]) -> list[int]:
    """
    Choose where to make a prompt resumable, for layers that cannot go on just anywhere.

    Each point costs a window or a checkpoint, so there are few: the end of the prompt, where its sequel starts; the end
    of its first message, which other conversations share; of its last one, because templates rewrite what they put
    behind it; where it parts from what others stored, and those that wait from it; and O(log) more on the way of a long
    one.

    Args:
        prompt: Its tokens.
        cached: Tokens that were restored; nothing before them is computed.
        forks: Tokens after which it parts from others.
        ends: Token ids that end a message.

    Returns:
        Positions in tokens, multiples of the block size, ascending, above `cached`, below the length of the prompt.
    """
    after_messages = [index + 1 for index, token in enumerate(prompt) if token in ends]
    last = len(prompt) - 1
    points = {last, *forks, *after_messages[:1], *after_messages[-1:]}
    back = INTERVAL
    while back < last:
        points.add((last - back) // INTERVAL * INTERVAL)
        back *= 2
    floored = {point - point % BLOCK_TOKENS for point in points}
    return sorted(point for point in floored if cached < point <= last)
