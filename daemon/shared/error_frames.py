"""
Clears the frames of an error that was dealt with: their locals stay in memory as long as the error does.

gRPC's exceptions and contextlib's frames keep an error in a cycle. Twenty refused requests of 15 MB stayed in memory
until the collector went through its oldest generation, which took minutes. The frames of a failed load hold half a
model, and all callers of the load keep its error.
"""

from __future__ import annotations

import traceback


def clear_frames(error: BaseException | None) -> None:
    """Clear the frames that an error, its causes and its contexts passed through. Frames that still run stay."""
    cleared: set[int] = set()
    pending = [error]
    while pending:
        error = pending.pop()
        if error is not None and id(error) not in cleared:
            cleared.add(id(error))
            traceback.clear_frames(error.__traceback__)
            pending += [error.__cause__, error.__context__]
