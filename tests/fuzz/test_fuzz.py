"""Parsers and checks take any bytes: they answer, or refuse with the error that is meant for that, and do not hang."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS

INPUTS = [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]


@pytest.mark.parametrize(("target", "path"), INPUTS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_corpus_inputs_crash_no_fuzz_target(target: str, path: Path) -> None:
    """The corpus has valid inputs, invalid inputs, and inputs that once broke a parser."""
    TARGETS[target](path.read_bytes())


def test_every_fuzz_target_has_a_corpus() -> None:
    """Every fuzz target has seeds, because a fuzzer without any finds little."""
    assert {target for target, _ in INPUTS} == set(TARGETS)


@st.composite
def changed(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """Take an input of the corpus, and cut, repeat or overwrite pieces of it."""
    data = bytearray(draw(st.sampled_from(inputs)))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        piece = draw(st.binary(max_size=12) | st.sampled_from(SPICE) | st.just(bytes(data[:length]) * 3))
        data[at : at + length] = piece
    return bytes(data)


SPICE = [
    b"\\ud800",
    b"\xff" * 8,
    b"null",
    b"[" * 200,
    b"1e999",
    b"-1",
    b"NaN",
    struct.pack("<Q", 2**63),
    b'{"a":',
    b"\0",
    b"{% for m in messages %}",
    b"{{ m",
    b"%}",
]


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz_target_answers_or_refuses_any_bytes(target: str) -> None:
    """Each target gets five hundred inputs: random bytes, and mutations of its corpus."""
    inputs = [path.read_bytes() for name, path in INPUTS if name == target]

    @settings(max_examples=500)
    @given(st.binary(max_size=300) | changed(inputs))
    def run(data: bytes) -> None:
        TARGETS[target](data)

    run()
