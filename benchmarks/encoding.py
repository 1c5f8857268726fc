"""
What a turn of a long conversation costs before the model sees it: `python -m benchmarks.encoding`.

A conversation is encoded for the first time. Then each turn adds a message of 400 characters, and is encoded with the
turns before it known. Both are the engine's own tokenizer, and its ids are compared with those of the whole text.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.page import RESULTS
from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from mlx_sidecar.v1 import sidecar_pb2 as pb

CHARACTERS = (10_000, 50_000, 200_000)
TURNS = 9


def main() -> int:
    """Measure, print a table, and write JSON."""
    rows = [_measured(characters) for characters in CHARACTERS]
    for row in rows:
        print("{tokens:6} tokens: {first_ms:6.1f} ms at first, {turn_ms:5.2f} ms a turn, {ratio:.3f} x".format(**row))
    report = {"benchmark": "encoding a conversation, ms", "turns": TURNS, **machine.describe(), "rows": rows}
    (RESULTS / "encoding.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _measured(characters: int) -> dict[str, float]:
    text, numbers = "", count()
    while len(text) < characters:
        text += _message(next(numbers))
    tokenizer = _tokenizer()
    tokenizer.warm_up()
    first, times = _seconds(tokenizer, text), []
    for _ in range(TURNS):
        text += _message(next(numbers))
        times.append(_seconds(tokenizer, text))
    ids = tokenizer.encode(text, special=False)
    assert ids == tokenizer.encode_turns(text, pb.CacheOptions())
    turn = median(times)
    return {"tokens": len(ids), "first_ms": 1000 * first, "turn_ms": 1000 * turn, "ratio": turn / first}


def _tokenizer() -> Tokenizer:
    return Tokenizers(Templates(time.monotonic)).get(Resolver([]).resolve(Wanted("embedded")))


def _message(number: int) -> str:
    source = Path(__file__).read_text()
    begin = 97 * number % (len(source) - 360)
    return f"<|im_start|>user\n{number}: {source[begin : begin + 360]}<|im_end|>\n"


def _seconds(tokenizer: Tokenizer, text: str) -> float:
    began = time.perf_counter()
    tokenizer.encode_turns(text, pb.CacheOptions())
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
