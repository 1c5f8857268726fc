"""The requests of chaos clients: few prompts with common prefixes, so that they share cached blocks."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import cycle

from daemon.engine.prompt.preparation import render
from daemon.engine.prompt.tokenizer import Tokenizer
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub

WORD_IDS = range(10, 700)
"""Ids of plain tokens of the embedded tokenizer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """
    One thing to ask for.

    Attributes:
        model: Its model.
        prompt: Ids of its tokens; of a conversation, what it is rendered to.
        max_tokens: How many to generate; end-of-sequence does not end it.
        seed: Seed of its sampling; None is greedy.
        salt: Salt of its namespace.
        bypass: Whether the prefix cache is left alone.
        chat: The messages of a conversation, the user's first; empty if the token ids are sent themselves.
    """

    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int | None = None
    salt: str = ""
    bypass: bool = False
    chat: tuple[str, ...] = ()

    @property
    def answer(self) -> Ask:
        """Return what decides the answer: the same without its dealings with the cache."""
        return replace(self, salt="", bypass=False)

    def request(self) -> pb.GenerateRequest:
        """Return the message."""
        mode = pb.CACHE_MODE_BYPASS if self.bypass else pb.CACHE_MODE_READ_WRITE
        sampling = pb.Sampling(temperature=0.8, seed=self.seed) if self.seed is not None else None
        request = pb.GenerateRequest(
            model=self.model,
            max_tokens=self.max_tokens,
            stop=pb.Stop(ignore_eos=True),
            sampling=sampling,
            cache=pb.CacheOptions(mode=mode, salt=self.salt),
        )
        if self.chat:
            roles = cycle(["user", "assistant"])
            messages = [pb.ChatMessage(role=next(roles), content=content) for content in self.chat]
            request.chat.messages.extend(messages)
        else:
            request.tokens.ids.extend(self.prompt)
        return request


def pool(rng: random.Random, models: list[str], tokenizer: Tokenizer) -> list[Ask]:
    """Return asks whose prompts share beginnings, within a model and across models: tokens, and two turns of a chat."""
    asks = []
    for _ in range(2):
        common = [rng.choice(WORD_IDS) for _ in range(rng.randint(40, 250))]
        for _ in range(2):
            prompt = tuple(common + [rng.choice(WORD_IDS) for _ in range(rng.randint(1, 60))])
            max_tokens = rng.choice([1, 17, 60, 200])
            asks += [Ask(model, prompt, max_tokens, rng.choice([None, rng.getrandbits(32)])) for model in models]
    words = tokenizer.decode([rng.choice(WORD_IDS) for _ in range(30)])
    for chat in ((words,), (words, "so it is", "and then?")):
        ask = Ask(models[0], (), 40, chat=chat)
        prompt = tuple(tokenizer.encode(render(ask.request(), tokenizer).text, special=False))
        asks += [replace(ask, model=model, prompt=prompt) for model in models]
    return asks


def solo_texts(stub: SidecarServiceStub, asks: list[Ask]) -> dict[Ask, str]:
    """Return what a daemon answers to each when it has nothing else to do and looks nothing up."""
    texts = {}
    for ask in asks:
        events = stub.Generate(replace(ask, bypass=True).request(), wait_for_ready=True)
        texts[ask] = "".join(event.delta.text for event in events)
    return texts
