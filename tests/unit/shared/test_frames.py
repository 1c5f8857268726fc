"""Frames: a message survives encoding and reading, and invalid bytes are never read as a frame."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.shared.frames import MAX_FRAME_BYTES, FrameError, encode_frame, read_frame
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

COMMANDS = st.builds(
    lambda call_id, text: ipc.Command(call_id=call_id, generate=pb.GenerateRequest(text=text)),
    st.integers(0, 2**64 - 1),
    st.text(),
)


def decode(*chunks: bytes) -> list[ipc.Command]:
    """Return the frames of a stream that arrives in chunks and then ends."""

    async def run() -> list[ipc.Command]:
        reader = asyncio.StreamReader()
        for chunk in chunks:
            reader.feed_data(chunk)
        reader.feed_eof()
        frames = []
        while (frame := await read_frame(reader, ipc.Command)) is not None:
            frames.append(frame)
        return frames

    return asyncio.run(run())


@given(st.lists(COMMANDS, max_size=4), st.lists(st.integers(1, 50), max_size=8))
def test_frames_round_trip(commands: list[ipc.Command], cuts: list[int]) -> None:
    """However the stream is cut."""
    stream = b"".join(map(encode_frame, commands))
    chunks = []
    for cut in cuts:
        chunks.append(stream[:cut])
        stream = stream[cut:]
    assert decode(*chunks, stream) == commands


@given(COMMANDS, st.data())
def test_torn_frame_ends_the_stream(command: ipc.Command, data: st.DataObject) -> None:
    """The process at the other end died; its incomplete frame is dropped."""
    frame = encode_frame(command)
    cut = data.draw(st.integers(0, len(frame) - 1))
    assert decode(encode_frame(command), frame[:cut]) == [command]


@given(st.integers(MAX_FRAME_BYTES + 1, 2**32 - 1))
def test_oversized_frame_is_refused_by_its_header(length: int) -> None:
    """Nothing is read or allocated for it."""
    with pytest.raises(FrameError, match=str(length)):
        decode(struct.pack(">I", length))


@given(st.binary(max_size=200))
def test_garbage_frame_is_refused_or_decoded(body: bytes) -> None:
    """Any bytes give a message, the end of the stream, or a FrameError; never another exception."""
    framed = struct.pack(">I", len(body)) + body
    for stream in (framed, body):
        try:
            decode(stream)
        except FrameError:
            continue


def test_frame_body_that_is_no_message_is_refused() -> None:
    """The error names the expected message."""
    with pytest.raises(FrameError, match="Command"):
        decode(struct.pack(">I", 3) + b"\xff\xff\xff")
