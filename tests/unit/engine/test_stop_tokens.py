"""The next prompt has the token that ended an answer, where a template writes it, and has not, where none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import CHECKPOINTS, Family, write
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.prompts import ids

BYPASS, READ_ONLY = pb.CACHE_MODE_BYPASS, pb.CACHE_MODE_READ_ONLY


def ask(
    harness: Harness, path: str, prompt: list[int], mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE, *stops: int
) -> Answer:
    """Return a sampled answer, always that of the same seed."""
    return harness.run(
        pb.GenerateRequest(
            model=path,
            tokens=pb.TokenIds(ids=prompt),
            max_tokens=40,
            sampling=pb.Sampling(temperature=1.0, seed=3),
            stop=pb.Stop(ignore_eos=True, token_ids=stops),
            cache=pb.CacheOptions(mode=mode),
        )
    )


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "mamba2", "qwen3_next"])
@pytest.mark.parametrize("rendered", [False, True], ids=["text", "template"])
def test_next_turn_goes_on_at_a_stop_token(harness: Harness, tmp_path: Path, family: str, rendered: bool) -> None:
    path, prompt = str(write(tmp_path, Family(family))), ids(300)
    said = ask(harness, path, prompt, BYPASS).ids
    new = (index for index, token in enumerate(said) if token not in said[:index] and (token in prompt) == rendered)
    end = next(index for index in new if index >= 16)
    answer = ask(harness, path, prompt, pb.CACHE_MODE_READ_WRITE, said[end])
    assert (answer.finished.reason, answer.ids) == (pb.FINISH_REASON_STOP, said[:end])

    turn = [*prompt, *said[: end + rendered], *ids(19, 2)]
    warm, cold = ask(harness, path, turn, READ_ONLY), ask(harness, path, turn, BYPASS)

    fed = len(prompt) + end + rendered
    assert warm.cached == (fed // 16 * 16 if family in CHECKPOINTS and not rendered else fed)
    assert (warm.ids, cold.cached) == (cold.ids, 0)
