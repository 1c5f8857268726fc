"""The choice of resume points: positions of a prompt at which windows and states are stored for later requests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from daemon.kv.keys import BLOCK_TOKENS

INTERVAL = 2048
"""A prompt is resumable at some multiples of this, in tokens; the further from its end, the fewer."""


def resume_points(prompt: Sequence[int], cached: int, forks: Collection[int], ends: Collection[int]) -> list[int]:
    """
    Choose where to make a prompt resumable, for models with windows or recurrent layers.

    Each point costs a window or a checkpoint, so there are few:

    * the end of its first message, which other conversations share;
    * the end of its last message, because templates rewrite what they put behind it;
    * if that is further than a block from the end of the prompt: the end, less the last token, and the end of its last
      block, because text that goes on may be cut into other tokens at its end;
    * the forks: where it diverges from stored prompts, or waiting prompts diverge from it;
    * in a long prompt, O(log n) multiples of `INTERVAL`, at distances from its end that double.

    Args:
        prompt: Its tokens.
        cached: Tokens that were restored; nothing before them is computed.
        forks: Positions, in tokens, where it diverges from other prompts.
        ends: Token ids that end a message.

    Returns:
        Positions in tokens, ascending, above `cached`, below the length of the prompt, not within its first block.
    """
    after_messages = [index + 1 for index, token in enumerate(prompt) if token in ends]
    last = len(prompt) - 1
    points = {*forks, *after_messages[:1], *after_messages[-1:]}
    if not any(last - BLOCK_TOKENS < point <= last for point in after_messages[-1:]):
        points |= {last, last - last % BLOCK_TOKENS}
    back = INTERVAL
    while back < last:
        points.add((last - back) // INTERVAL * INTERVAL)
        back *= 2
    return sorted(point for point in points if max(cached, BLOCK_TOKENS - 1) < point <= last)
