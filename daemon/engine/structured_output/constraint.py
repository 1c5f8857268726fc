"""The interface by which a sampler asks which tokens may come next."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx


class Constraint(Protocol):
    """Follows one completion and tells which tokens may come next."""

    @property
    def waits(self) -> bool:
        """Whether the next mask depends on the token that was sampled last, so that the device has to be waited for."""

    def mask(self, last: mx.array | None) -> mx.array | None:
        """
        Return the tokens that may follow.

        Args:
            last: The token that was sampled last, shape [1], perhaps not computed yet; None at the beginning.

        Returns:
            A bool for each token, shape [vocab]; None if all may follow.

        Raises:
            SidecarError: INVALID_ARGUMENT if a form takes too much work.
        """
