"""Sealed frames: what was changed, left out, repeated or sent back on the way does not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.shared.frames import FrameError
from daemon.shared.seals import Opener, Seal, session_keys

KEY = bytes(32)
BODIES = [b"", b"one", b"two" * 1000]


def sealed() -> list[bytes]:
    """Return the frames of some messages."""
    seal = Seal(KEY)
    return [seal.frame(body) for body in BODIES]


@given(st.lists(st.integers(1, 2000), max_size=30))
def test_frames_pass_in_pieces_of_any_size(sizes: list[int]) -> None:
    """A socket cuts where it likes."""
    stream, opener, bodies = b"".join(sealed()), Opener(KEY), list[bytes]()
    for size in [*sizes, len(stream)]:
        bodies += opener.add(stream[:size])
        stream = stream[size:]
    assert bodies == BODIES


@given(st.integers(0, len(b"".join(sealed())) - 1), st.integers(1, 255))
def test_changed_byte_does_not_pass(place: int, change: int) -> None:
    """Wherever it is: no message from there on is taken for one of the sender's."""
    stream = bytearray(b"".join(sealed()))
    stream[place] ^= change
    opener = Opener(KEY)
    try:
        bodies = opener.add(bytes(stream))
    except FrameError:
        return
    assert len(bodies) < len(BODIES)  # a longer length waits for bytes that do not come
    assert bodies == BODIES[: len(bodies)]


def test_left_out_frame_is_noticed() -> None:
    """Frames are numbered by their seals."""
    first, _, third = sealed()
    opener = Opener(KEY)
    opener.add(first)
    with pytest.raises(FrameError, match="wrong seal"):
        opener.add(third)


def test_repeated_frame_is_noticed() -> None:
    """The same bytes have the wrong number."""
    first = sealed()[0]
    opener = Opener(KEY)
    opener.add(first)
    with pytest.raises(FrameError, match="wrong seal"):
        opener.add(first)


def test_frame_of_the_other_direction_is_noticed() -> None:
    """Each direction has a key of its own."""
    up, down = session_keys(KEY, b"transcript")
    with pytest.raises(FrameError, match="wrong seal"):
        Opener(down).add(Seal(up).frame(b"body"))


def test_frame_of_gigabytes_is_refused() -> None:
    """Before it is read."""
    with pytest.raises(FrameError, match="announced"):
        Opener(KEY).add(b"\xff\xff\xff\xff")
