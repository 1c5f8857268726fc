"""Lower bounds: the same computation in this process with mlx-lm alone, without any server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import batch_generate, load, stream_generate
from mlx_lm.models.cache import KVCache, make_prompt_cache

from benchmarks.figures import SPEED, Metric

FLOOR = "floor"
IN_PROCESS = "mlx-lm in process"


class Floor:
    """A model loaded in this process."""

    def __init__(self, path: Path) -> None:
        self.model: Any
        self.tokenizer: Any
        self.model, self.tokenizer = load(str(path))[:2]
        mx.eval(self.model.parameters())

    def prefilled(self, prompt: str) -> list[Any]:
        """Return a cache that holds a prompt."""
        caches: list[Any] = make_prompt_cache(self.model)
        ids = self.tokenizer.encode(prompt)
        for start in range(0, len(ids), 2048):
            self.model(mx.array([ids[start : start + 2048]]), cache=caches)
            mx.eval([cache.state for cache in caches])
        return caches

    def warm_first_token(self, caches: list[KVCache], suffix: str) -> float:
        """Return the milliseconds of one copy of a KV cache and one forward pass of a suffix, up to its first token."""
        ids = mx.array([self.tokenizer.encode(suffix)])
        mx.eval(ids)
        began = time.perf_counter()
        copies = []
        for cache in caches:
            copy = KVCache()
            rows = [getattr(cache, name)[..., : cache.offset, :] for name in ("keys", "values")]
            room = [mx.zeros((1, row.shape[1], ids.shape[1], row.shape[3]), row.dtype) for row in rows]
            copy.keys, copy.values = (mx.concatenate([*pair], axis=2) for pair in zip(rows, room, strict=True))
            copy.offset = cache.offset
            copies.append(copy)
        mx.eval([(copy.keys, copy.values) for copy in copies])
        mx.argmax(self.model(ids, cache=copies)[0, -1]).item()
        return 1000 * (time.perf_counter() - began)

    def bare_steps(self, prompt: str, tokens: int, streams: int) -> dict[Metric, float]:
        """
        Return the throughput of the model's greedy step alone, over `streams` rows.

        Each step is submitted before the token of the step before is read.
        """
        caches = make_prompt_cache(self.model)
        began = time.perf_counter()
        ids = mx.array([self.tokenizer.encode(prompt)] * streams)
        for _ in range(tokens):
            following = mx.argmax(self.model(ids, cache=caches)[:, -1:], axis=-1)
            mx.async_eval(following)
            if ids.shape[1] == 1:
                ids.tolist()
            ids = following
        ids.tolist()
        return {SPEED: streams * tokens / (time.perf_counter() - began)}

    def pieces(self, prompt: str, tokens: int) -> Iterator[str]:
        """Generate with `mlx_lm.stream_generate`, and yield the text of each token."""
        for response in stream_generate(self.model, self.tokenizer, prompt, max_tokens=tokens):
            yield response.text

    def generate(self, prompt: str, tokens: int) -> dict[Metric, float]:
        """Return the throughput of `pieces`."""
        began = time.perf_counter()
        assert sum(1 for _ in self.pieces(prompt, tokens)) == tokens, "generation ended early"
        return {SPEED: tokens / (time.perf_counter() - began)}

    def generate_together(self, prompts: Sequence[str], tokens: int) -> dict[Metric, float]:
        """Return the throughput of `mlx_lm.batch_generate` with all prompts at once."""
        ids = [self.tokenizer.encode(prompt) for prompt in prompts]
        began = time.perf_counter()
        made = batch_generate(self.model, self.tokenizer, ids, max_tokens=tokens, return_token_ids=True)
        seconds = time.perf_counter() - began
        assert all(len(answer) == tokens for answer in made.token_ids), "generation ended early"
        return {SPEED: len(prompts) * tokens / seconds}


def timed(work: Callable[[], object]) -> float:
    """Return the duration of a call in milliseconds."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)
