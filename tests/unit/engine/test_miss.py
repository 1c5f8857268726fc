"""The first event of an answer says why no more of its prompt was reused, and where it differs from another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.engine.prompt.places import LEAST_LEAD, Place, places_of
from daemon.engine.prompt.tokenizer import Tokenizer
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Harness, generate

SYSTEM = "You are an assistant who knows the code of the door. Today is Tuesday. Answer in one short sentence."
QUESTION = "What is the code of the door, and what is behind it?"


def chat(*contents: str, **fields: Any) -> pb.GenerateRequest:
    """Return a request with a conversation: the first content is the system's, then user and assistant take turns."""
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = [pb.ChatMessage(role=role, content=content) for role, content in zip(roles, contents, strict=False)]
    return pb.GenerateRequest(
        **{"model": "embedded", "chat": pb.Chat(messages=messages), "max_tokens": 4, **fields},
    )


def miss(harness: Harness, request: pb.GenerateRequest) -> pb.Miss | None:
    """Run a request and return its miss."""
    answer = harness.run(request)
    assert not answer.failure.reason, answer.failure
    return answer.started.miss if answer.started.HasField("miss") else None


def reason(harness: Harness, request: pb.GenerateRequest) -> str | None:
    """Run a request and return the reason of its miss."""
    found = miss(harness, request)
    return None if found is None else pb.MissReason.Name(found.reason).removeprefix("MISS_REASON_")


def test_chat_diverges_at_a_character_of_a_message(harness: Harness) -> None:
    assert reason(harness, chat(SYSTEM, QUESTION)) == "NEVER_SEEN"
    assert reason(harness, chat(SYSTEM, QUESTION)) is None
    harness.clock_offset += 90

    found = miss(harness, chat(SYSTEM.replace("Tuesday", "Friday"), QUESTION))

    assert found is not None
    assert found.reason == pb.MISS_REASON_DIVERGED
    assert found.message == 0
    assert SYSTEM.index("Tuesday") - 8 <= found.character <= SYSTEM.index("Tuesday")
    assert 90 <= found.seen.ToSeconds() < 120
    other = miss(harness, chat(SYSTEM, "Who painted the door?"))
    assert other is not None
    assert (other.message, other.character) == (1, 0)


def test_next_turn_of_a_conversation_misses_nothing(harness: Harness) -> None:
    """All that the turn before computed was reused, so its new tokens are no miss."""
    harness.run(generate(QUESTION * 3))
    answer = harness.run(generate(QUESTION * 3 + " And then?"))

    assert answer.cached > 0
    assert not answer.started.HasField("miss")


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "mamba2", "qwen3_next"])
def test_turn_after_a_turn_misses_nothing(harness: Harness, tmp_path: Path, family: str) -> None:
    """With windows and states too: it goes on exactly where the turn before ended."""
    path = str(write(tmp_path, Family(family)))
    first = harness.run(ids(range(10, 110), model=path, max_tokens=9))

    answer = harness.run(ids([*range(10, 110), *first.ids[:-1], *range(200, 230)], model=path))

    assert answer.cached == 108
    assert not answer.started.HasField("miss")


def test_text_diverges_at_a_character(harness: Harness) -> None:
    harness.run(generate(SYSTEM + QUESTION))
    found = miss(harness, generate(SYSTEM + "Why?" + QUESTION))

    assert found is not None
    assert found.reason == pb.MISS_REASON_DIVERGED
    assert not found.HasField("message")
    assert abs(found.character - len(SYSTEM)) <= 1


def test_token_ids_diverge_at_a_token_alone(harness: Harness) -> None:
    harness.run(ids(range(10, 60)))
    found = miss(harness, ids([*range(10, 45), 9, *range(46, 60)]))

    assert found is not None
    assert (found.reason, found.token) == (pb.MISS_REASON_DIVERGED, 35)
    assert not found.HasField("message")
    assert not found.HasField("character")


def ids(tokens: Any, **fields: Any) -> pb.GenerateRequest:
    """Return a request with a prompt of token ids."""
    return pb.GenerateRequest(**{"model": "embedded", "tokens": pb.TokenIds(ids=tokens), "max_tokens": 2, **fields})


def test_evicted_and_invalidated_prompts_are_told_apart(harness: Harness) -> None:
    prompt = ids(range(10, 60))
    harness.run(prompt)
    harness.engine._memory._prefixes.shed(10**9)
    assert reason(harness, prompt) == "EVICTED"

    harness.run(pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)))
    assert reason(harness, prompt) == "INVALIDATED"
    assert reason(harness, prompt) is None
    assert (harness.figures.prefix_cache.misses.evicted, harness.figures.prefix_cache.misses.invalidated) == (1, 1)


def test_salt_differs_only_from_prompts_without_one(harness: Harness) -> None:
    """A salt keeps its prompts secret; that a prompt was seen without a salt is none."""
    prompt = range(10, 60)
    harness.run(ids(prompt))
    found = miss(harness, ids(prompt, cache=pb.CacheOptions(salt="s")))
    assert found is not None
    assert found.reason == pb.MISS_REASON_OTHER_NAMESPACE
    assert found.differs == [pb.NAMESPACE_PART_SALT]
    assert found.token == 48

    harness.run(ids(range(70, 99), cache=pb.CacheOptions(salt="s")))
    assert reason(harness, ids(range(70, 99), cache=pb.CacheOptions(salt="t"))) == "NEVER_SEEN"
    assert reason(harness, ids(range(70, 99))) == "NEVER_SEEN"


def test_prompt_of_a_block_is_too_short(harness: Harness) -> None:
    assert reason(harness, ids(range(16))) == "TOO_SHORT"


@pytest.mark.parametrize("mode", [pb.CACHE_MODE_BYPASS, pb.CACHE_MODE_READ_ONLY])
def test_miss_is_told_where_prefixes_are_read(harness: Harness, mode: pb.CacheMode) -> None:
    found = reason(harness, ids(range(10, 60), cache=pb.CacheOptions(mode=mode)))
    assert found == (None if mode == pb.CACHE_MODE_BYPASS else "NEVER_SEEN")


def test_disabled_cache_has_no_misses(engine: Callable[..., Harness]) -> None:
    assert reason(engine(kv_cache_mb=0), ids(range(10, 60))) is None


@pytest.mark.parametrize("family", ["mamba2", "gemma3_text"])
def test_resume_point_lies_before_the_shared_tokens(harness: Harness, tmp_path: Path, family: str) -> None:
    """A prompt that leaves another one in the middle goes on at the resume point before."""
    path = str(write(tmp_path, Family(family)))
    harness.run(ids(range(10, 160), model=path))

    answer = harness.run(ids([*range(10, 100), *range(5, 60)], model=path))

    found = answer.started.miss
    assert found.reason == pb.MISS_REASON_RESUME_POINT
    assert (found.token, found.resume_token) == (90, answer.cached)
    assert answer.cached < 80


def test_places_of_the_embedded_tokenizer_are_exact(tokenizer: Tokenizer) -> None:
    text = "Ein Satz mit Ümlauten, 漢字 and 🦀 crabs."
    tokens = tokenizer.encode(text, special=False)
    places = places_of(tokens, text, None)

    assert places is not None
    for index in range(len(tokens)):
        begun = tokenizer.decode(tokens[:index])
        if "\ufffd" not in begun:
            assert places.at(index) == Place(None, len(begun))


def test_place_of_a_token_without_a_message_is_unknown() -> None:
    assert places_of([1, 2, 3], "abc", None) is None
    assert LEAST_LEAD == 1
