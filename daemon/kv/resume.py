"""The choice of resume points: positions of a prompt at which windows and states are stored for later requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from daemon.kv.keys import BLOCK_TOKENS

INTERVAL = 2048
"""A prompt is resumable at some multiples of this, in tokens; the further from its end, the fewer."""

NEAR = 128
"""So many tokens are computed again rather than made resumable: a point of their own would split a pass in two."""


def resume_points(
    prompt: Sequence[int], cached: int, forks: Collection[int], ends: Collection[int], last: int
) -> list[int]:
    """
    Choose where to make a prompt resumable, for models with windows or recurrent layers.

    Each point costs a window or a checkpoint, so there are few:

    * the end of its first message, which other conversations share;
    * the end of its last message, because templates rewrite what they put behind it;
    * if that is further than a block from the end of the prompt: the end, because a next turn goes on there;
    * and the end of the last block before its last token, because the same prompt may come again, and text that goes on
      may be cut into other tokens at its end; not if they can go on at a place that is near enough;
    * the forks: where it diverges from stored prompts, or waiting prompts diverge from it;
    * in a long prompt, O(log n) multiples of `INTERVAL`, at distances from its end that double.

    Args:
        prompt: Its tokens.
        cached: Tokens that were restored; nothing before them is computed.
        forks: Positions, in tokens, where it diverges from other prompts.
        ends: Token ids that end a message.
        last: How many of its tokens are computed; the last one may be left to the decoder.

    Returns:
        Positions in tokens, ascending, above `cached`, not above `last`, not within the prompt's first block.
    """
    after_messages = [index + 1 for index, token in enumerate(prompt) if token in ends]
    points = {*forks, *after_messages[:1], *after_messages[-1:]}
    if not any(point >= len(prompt) - BLOCK_TOKENS for point in after_messages[-1:]):
        near = any(last > point >= max(BLOCK_TOKENS, last - NEAR) for point in (cached, *points))
        points |= {last} if near else {last, (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS}
    back = INTERVAL
    while back < last:
        points.add((last - back) // INTERVAL * INTERVAL)
        back *= 2
    return sorted(point for point in points if max(cached, BLOCK_TOKENS - 1) < point <= last)
