"""Random prompts of a few blocks, and their namespaces."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.unit.kv.fake_kv import prompt

NAMESPACES = st.sampled_from(["n/one", "n/two"])

PROMPTS = st.tuples(st.lists(st.integers(1, 2), min_size=1, max_size=4), st.integers(0, 3)).map(
    lambda drawn: prompt(*drawn[0], tail=drawn[1])
)
