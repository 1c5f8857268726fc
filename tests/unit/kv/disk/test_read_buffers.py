"""Memory that pieces are read into: used again, bounded, and never while a view of it is left."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest

from daemon.kv.disk.buffers import SLACK, SPARE_BYTES, ReadBuffers
from daemon.kv.disk.files import Files
from daemon.kv.disk.piece import Part, Piece
from daemon.kv.disk.tier import REST_SECONDS
from daemon.kv.mlx.disk_codec import ArrayCodec
from daemon.kv.spec import NotHeldError
from daemon.shared.slices import drain
from tests.unit.kv.disk.fake_disk import TOKENS, written


def test_buffer_with_a_view_is_not_used_again() -> None:
    """A part of a part keeps it, also after the whole is gone; then it serves the next piece of about that size."""
    buffers = ReadBuffers()
    whole = buffers.take(SLACK * 2)
    whole[7] = 1
    part = whole[4:8][1:]
    del whole
    assert buffers.nbytes == 0
    other = buffers.take(SLACK * 2)
    other[7] = 2
    assert part[2] == 1
    del part
    assert buffers.nbytes == SLACK * 2
    again = buffers.take(SLACK + 1)
    assert (len(again), again[7], buffers.nbytes) == (SLACK + 1, 1, 0)


def test_spare_memory_is_bounded() -> None:
    """The oldest goes first; what is far too large for a piece does not serve it; all can be given up."""
    buffers = ReadBuffers()
    lent = [buffers.take(SPARE_BYTES // 2) for _ in range(3)]
    del lent
    assert buffers.nbytes == SPARE_BYTES
    small = buffers.take(10)
    assert (len(small), buffers.nbytes) == (10, SPARE_BYTES)
    buffers.clear()
    assert buffers.nbytes == 0


def test_parts_outlive_the_read_of_the_next_piece(tmp_path: Path) -> None:
    """Two pieces of equal size are read while the parts of the first are held."""
    files = Files(tmp_path / "kv")
    files.open()
    pieces = [Piece("n", "model", 0, b"p" * 32, (bytes([each]) * 32,)) for each in (1, 2)]
    sizes = [files.write(piece, [Part({}, bytes([each]) * 999)]) for each, piece in enumerate(pieces)]
    pieces = [
        Piece("n", "model", 0, b"p" * 32, piece.hashes, nbytes=size) for piece, size in zip(pieces, sizes, strict=True)
    ]
    first, second = files.read(pieces[0]), files.read(pieces[1])
    assert (set(first[0].data), set(second[0].data)) == ({0}, {1})
    del first
    assert files.buffers.nbytes == sizes[0]
    assert set(files.read(pieces[1])[0].data) == {1}


def test_idle_tier_keeps_no_memory_for_reads() -> None:
    """It is billed until then."""
    disk = written(TOKENS)
    view = disk.files.buffers.take(100)
    del view
    assert disk.tier.staged == 100
    disk.now += REST_SECONDS
    disk.tier.tick()
    assert disk.tier.staged == 0


def test_parts_of_an_array_are_joined() -> None:
    """Along the tokens; a hole, and parts of other shapes, are refused."""
    codec, array = ArrayCodec(), mx.random.normal((2, 3, 64, 5)).astype(mx.bfloat16)

    def part(start: int, stop: int, heads: int = 3) -> Part:
        cut = mx.contiguous(array[:, :heads, start * 16 : stop * 16])
        about = {"group": 0, "start": start, "stop": stop, "array": 0, "dtype": "bfloat16", "shape": list(cut.shape)}
        return Part(about, bytes(memoryview(cut.view(mx.uint8))))  # type: ignore[arg-type]

    source = drain(codec.decoded([part(0, 1), part(1, 3), part(3, 4)]))
    (joined,) = cast("tuple[mx.array]", source.pack(0, 1, 4).payload)
    assert mx.array_equal(joined, array[:, :, 16:])
    with pytest.raises(NotHeldError):
        source.pack(0, 1, 5)
    for parts in ([part(0, 1), part(2, 3)], [part(0, 1), part(1, 2, heads=1)]):
        with pytest.raises(ValueError, match="a file"):
            drain(codec.decoded(parts))
