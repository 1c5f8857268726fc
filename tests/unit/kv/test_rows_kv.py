"""Rows of a batch that end at different positions hold and see their own tokens, and nothing of what was forgotten."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.kv.mlx import peak
from daemon.kv.mlx.adapters.kv_cache import KVCacheAdapter
from daemon.kv.mlx.rows_kv import RowsKV

ADAPTER = KVCacheAdapter()


def array(rows: list[list[int]]) -> mx.array:
    """Return tokens as keys, [rows, 1, tokens, 2]."""
    return mx.broadcast_to(mx.array(rows, mx.float32)[:, None, :, None], (len(rows), 1, len(rows[0]), 2))


class Rows:
    """
    A batch, and what each of its rows should hold.

    Args:
        prompts: Tokens of each row.
    """

    def __init__(self, prompts: list[list[int]]) -> None:
        self.expected = [list(prompt) for prompt in prompts]
        self._last = 1000
        self.cache = self._batch(prompts[0])
        for prompt in prompts[1:]:
            self.cache.extend(self._batch(prompt))

    def feed(self, width: int, kept: list[int]) -> None:
        """Feed each row some tokens, compare what the last of them sees, and let each row keep so many."""
        tokens = [[self._next() for _ in range(width)] for _ in self.expected]
        mask = self.cache.make_mask(width)
        keys, values = self.cache.update_and_fetch(array(tokens), -array(tokens))
        for row, held in enumerate(self.expected):
            for place in range(width):
                seen = [int(i) for i, one in enumerate(_row(mask, row)[place]) if one]
                assert [keys[row, 0, i, 0].item() for i in seen] == [*held, *tokens[row][: place + 1]]
                assert [-values[row, 0, i, 1].item() for i in seen] == [*held, *tokens[row][: place + 1]]
        ADAPTER.back_rows(self.cache, None, width, kept)
        for held, fed, count in zip(self.expected, tokens, kept, strict=True):
            held += fed[:count]

    def keep(self, rows: list[int]) -> None:
        """Let rows leave."""
        self.cache.filter(rows)
        self.expected = [self.expected[row] for row in rows]

    def join(self, prompt: list[int]) -> None:
        """Let a row join."""
        self.cache.extend(self._batch(prompt))
        self.expected.append(list(prompt))

    def check(self) -> None:
        """Compare each row, its length and what it is as a cache of its own."""
        assert self.cache.offset.tolist() == list(map(len, self.expected))
        for row, held in enumerate(self.expected):
            single = ADAPTER.to_single(self.cache, row)
            assert single.offset == len(held)
            assert single.keys[0, 0, : single.offset, 0].tolist() == held

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _batch(self, prompt: list[int]) -> RowsKV:
        batch = RowsKV([0])
        batch.update_and_fetch(array([prompt]), -array([prompt]))
        return batch


def _row(mask: mx.array, row: int) -> Any:
    return mask[row if mask.shape[0] > 1 else 0, 0].tolist()


PROMPT = st.lists(st.integers(1, 99), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(PROMPT, min_size=1, max_size=4))
def test_rows_hold_and_see_their_own_tokens(data: st.DataObject, prompts: list[list[int]]) -> None:
    """In any order of passes, tokens forgotten, rows that join and rows that leave."""
    rows = Rows(prompts)
    for _ in range(data.draw(st.integers(1, 6))):
        count = len(rows.expected)
        match data.draw(st.sampled_from(["feed", "feed", "feed", "keep", "join"])):
            case "feed":
                width = data.draw(st.integers(1, 4))
                rows.feed(width, data.draw(st.lists(st.integers(0, width), min_size=count, max_size=count)))
            case "keep":
                rows.keep(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
            case "join":
                rows.join(data.draw(PROMPT))
        rows.check()


def test_rows_of_unequal_ends_grow() -> None:
    """Beyond the step by which mlx-lm's arrays grow."""
    rows = Rows([[1] * 250, [2] * 240])
    for _ in range(4):
        rows.feed(4, [4, 1])
    rows.check()
    assert rows.cache.keys.shape[2] == 2 * RowsKV.step


def test_rows_that_end_together_again_are_plain() -> None:
    """So that the next passes write one slice, not a place for each row."""
    rows = Rows([[1, 2, 3], [4, 5]])
    rows.feed(3, [1, 3])
    assert rows.cache.ends == [4, 6]
    rows.feed(3, [3, 1])
    assert rows.cache.ends is None
    rows.check()


def test_rows_that_join_a_longer_one_exist_once_beside_themselves() -> None:
    """All of them are padded: without a copy of them apart from the one that they are joined in."""
    batch, longer = _of(7, 300), _of(1, 310)
    with peak.measuring() as taken:
        batch.extend(longer)
        mx.eval(batch.state)
    assert batch.keys.shape == (8, 2, 512, 64)
    assert taken.bytes <= batch.nbytes


def _of(rows: int, tokens: int) -> RowsKV:
    """Return evaluated rows that hold so many zeros."""
    batch, zeros = RowsKV([0] * rows), mx.zeros((rows, 2, tokens, 64))
    batch.update_and_fetch(zeros, zeros)
    mx.eval(batch.state)
    return batch
