"""An error that was dealt with keeps nothing in memory."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ReferenceType, ref

import pytest

from daemon.shared.error_frames import clear_frames


class Held:
    """A local of a frame."""


def fail(held_by_frames: list[ReferenceType[Held]], inner: Callable[[], None] = lambda: None) -> None:
    """Raise an error, which the error of `inner` has led to, in a frame with a local."""
    held = Held()
    held_by_frames.append(ref(held))
    try:
        inner()
    except ValueError as error:
        raise ValueError("it follows from another one") from error
    raise ValueError("it is the first one")


def test_locals_of_an_error_and_of_its_cause_are_freed() -> None:
    held: list[ReferenceType[Held]] = []
    with pytest.raises(ValueError, match="another") as caught:
        fail(held, lambda: fail(held))
    assert [local() is None for local in held] == [False, False]
    clear_frames(caught.value)
    assert [local() is None for local in held] == [True, True]


def test_error_that_is_its_own_cause_has_an_end() -> None:
    error = ValueError()
    error.__cause__ = error
    clear_frames(error)
