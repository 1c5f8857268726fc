"""The interface by which a sampler asks which tokens may come next."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx


class Drawn(Protocol):
    """A token that was sampled and may not be computed yet."""

    @property
    def id(self) -> int:
        """Its id; waits for the device."""


class Constraint(Protocol):
    """Follows one completion and tells which tokens may come next."""

    @property
    def waits(self) -> bool:
        """Whether the next mask depends on the token that was sampled last, so that the device has to be waited for."""

    def mask(self, last: Drawn | None) -> mx.array | None:
        """
        Return the tokens that may follow.

        Args:
            last: The token that was sampled last; None at the beginning.

        Returns:
            A bool for each token, shape [vocab]; None if all may follow, and always where it does not wait.

        Raises:
            SidecarError: INVALID_ARGUMENT if a form takes too much work.
        """

    def late_mask(self) -> mx.array | None:
        """
        Return the mask that the newest token should have had, now that the token before it is known.

        Returns:
            As for `mask`; None if the token was rightly sampled.
        """
