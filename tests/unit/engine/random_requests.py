"""Random requests of conversations that go on or branch anywhere, with all that a request can ask for mixed."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.duration_pb2 import Duration

from daemon.server.generate_validation import check_generate
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.cold_runs import Sample
from tests.unit.engine.harness import Answer

LONGEST = 420
"""Tokens of a history that goes on."""

SAMPLINGS = (
    pb.Sampling(),
    pb.Sampling(repetition_penalty=1.5, logit_bias={9: 3.0, 11: -100.0}),
    pb.Sampling(temperature=0.9, seed=7),
    pb.Sampling(temperature=1.3, seed=8, top_p=0.9, top_k=40, min_p=0.01),
    pb.Sampling(temperature=0.7, seed=9, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4),
    pb.Sampling(temperature=1.5, seed=4, logit_bias={11: 100.0, 12: 100.0}),
)
"""With the last one only two tokens come: n-grams guess many of them, half of them wrongly."""
DRAWN = SAMPLINGS[2:]
SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "array", "items": {"enum": ["x", "xy"]}}},'
    ' "required": ["a"], "additionalProperties": false}'
)
FORMS = (pb.ResponseFormat(regex="[0-9]{3,9}(-[a-c]+)?"), pb.ResponseFormat(json_schema=SCHEMA))
CACHES = (
    *[pb.CacheOptions()] * 6,
    pb.CacheOptions(mode=pb.CACHE_MODE_READ_ONLY),
    pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
    pb.CacheOptions(salt="s"),
    pb.CacheOptions(keep=Duration(seconds=60)),
)
GUESSES = (*[pb.SPECULATION_AUTO] * 3, *[pb.SPECULATION_NGRAM] * 2, pb.SPECULATION_OFF)
WORDS = ("ship", "sea", "tell", "me", "again", "why", "<s>", "é", "42")

MARKS = {"<tool_call>": False, "<think>": True, "</think>": True}
"""Marks of a model that calls tools and reasons; their ids begin with `FIRST_MARK`."""
FIRST_MARK = 737
TEMPLATE = "{# <tool_call> #}{{ '<think>\n' }}"
PAINT = '{"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}}'
TOOLS = (pb.Tool(name="go_home"), pb.Tool(name="paint", parameters_json=PAINT))
CHOICES = (pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NONE)

NOT_TO_SCORE = ("samples", "sampling", "stop", "top_logprobs", "response_format", "speculation")
"""What a request cannot ask for that only scores its prompt."""


class Requests:
    """
    Conversations, and what comes next in one of them.

    Args:
        rng: Chooses.
        model: Who answers.
        draft: A model that guesses for it; empty for none.
        marked: Whether it reasons and calls tools.
        head: Whether it has an MTP head.
    """

    def __init__(self, rng: random.Random, model: str, draft: str, *, marked: bool, head: bool) -> None:
        self._rng = rng
        self._model, self._draft, self._marked, self._head = model, draft, marked, head
        trunk = [(i * i + 7 * i + i // 5) % 700 + 3 for i in range(200)]
        self._given = [trunk[:40], trunk[:97], trunk[:160], [*trunk[:96], 11, 12, 11, 12]]
        self._told: list[list[int]] = []
        systems = ("You know all about ships and the sea. " * count for count in (1, 7))
        self._begun = [[pb.ChatMessage(role="system", content=content)] for content in systems]
        self._talks: list[list[pb.ChatMessage]] = []

    def history(self) -> list[int]:
        """Return a history of tokens: one of those that all have, or the prompt of an answer and its tokens."""
        return self._rng.choice([*self._given, *self._told])

    def some(self) -> pb.GenerateRequest:
        """Return a request: a turn of a conversation, or tokens."""
        if self._rng.random() < (0.7 if self._marked else 0.3):
            return self._request({"chat": self._chat()})
        history = self._rng.choice([[], self.history(), self.history()])
        if history and self._rng.random() < 0.4:
            history = history[: self._rng.randint(1, len(history))]
        return self.after(history)

    def after(self, history: list[int]) -> pb.GenerateRequest:
        """Return a request whose prompt goes on after a history."""
        count = self._rng.choice([1, 1, 3, 15, 16, 17, 33, 50])
        new = [self._rng.choice((2, self._rng.randrange(3, 700), 11, 12)) for _ in range(count)]
        return self._request({"tokens": pb.TokenIds(ids=[*history, *new])})

    def remember(self, request: pb.GenerateRequest, answer: Answer) -> None:
        """Let later requests go on after an answer, with its reasoning or without."""
        sample = Sample(answer)
        if request.chat.continue_final_message:
            return  # its last turn is that of the answer
        if request.HasField("chat"):
            turns = [*request.chat.messages, *sample.turns(reasoning=self._rng.random() < 0.7)]
            self._talks = [*self._talks[-8:], *[turns] * (len(turns) < 9)]
        elif len(told := [*request.tokens.ids, *sample.ids]) <= LONGEST:
            self._told = [*self._told[-12:], told]

    def _chat(self) -> pb.Chat:
        messages = self._rng.choice([*self._begun, *self._talks])
        kept = max(1, len(messages) - self._rng.choice([0, 0, 0, 1, 2, 3]))
        words = " ".join(self._rng.choices(WORDS, k=self._rng.randint(1, 20)))
        chat = pb.Chat(messages=[*messages[:kept], pb.ChatMessage(role="user", content=words)])
        if self._marked and self._rng.random() < 0.4:
            chat.tools.extend(TOOLS)
            chat.tool_choice = self._rng.choice(CHOICES)
        elif self._rng.random() < 0.12:
            chat.messages.add(role="assistant", content=" ".join(self._rng.choices(WORDS, k=3)))
            chat.continue_final_message = True
        return chat

    def _request(self, fields: dict[str, Any]) -> pb.GenerateRequest:
        rng, chance = self._rng, self._rng.random
        fields |= {
            "max_tokens": rng.choice([1, 2, 5, 15, 16, 17, 24, 40]),
            "sampling": pb.Sampling.FromString(rng.choice(SAMPLINGS).SerializeToString()),
            "speculation": rng.choice(GUESSES),
            "stop": pb.Stop(
                ignore_eos=chance() < 0.7,
                strings=["th", "e s"] if chance() < 0.1 else [],
                token_ids=rng.choice(([12], [9, 40, 41])) if chance() < 0.15 else [],
            ),
            "priority": rng.choice([-1, 0, 0, 2]),
            "cache": rng.choice(CACHES),
        }
        if chance() < 0.7:
            fields["top_logprobs"] = rng.choice([0, 2])
        self._ask_for_a_form(fields)
        self._ask_for_more(fields)
        request = pb.GenerateRequest(model=self._model, **fields)
        check_generate(request)
        return request

    def _ask_for_a_form(self, fields: dict[str, Any]) -> None:
        """Ask for a form, for tools, or for a bound of reasoning."""
        rng, chat = self._rng, fields.get("chat")
        choice = chat.tool_choice if chat is not None and chat.tools else pb.TOOL_CHOICE_NONE
        if choice == pb.TOOL_CHOICE_NONE and rng.random() < 0.15:
            fields["response_format"] = rng.choice(FORMS)
        if "response_format" in fields or choice == pb.TOOL_CHOICE_REQUIRED:
            fields["stop"].ignore_eos = False
        if chat is not None and chat.tools and rng.random() < 0.3:
            fields["stop"].at_tool_call = True
        if self._marked and chat is not None:
            if rng.random() < 0.3 and not chat.continue_final_message:
                fields["reasoning_budget"] = rng.choice([0, 3, 9])
            begin, end = rng.choice([0.0, 5.0]), rng.choice([0.0, 4.0, 6.0])
            fields["sampling"].logit_bias.update({FIRST_MARK: begin, FIRST_MARK + 2: end})
            fields["max_tokens"] = 40

    def _ask_for_more(self, fields: dict[str, Any]) -> None:
        """Ask for samples, guesses of another model or of a head, or scores of the prompt."""
        rng = self._rng
        if rng.random() < 0.15:
            fields["samples"] = rng.randint(2, 3)
            bias = fields["sampling"].logit_bias
            fields["sampling"] = pb.Sampling.FromString(rng.choice(DRAWN).SerializeToString())
            fields["sampling"].logit_bias.update(bias)
        elif self._draft and rng.random() < 0.1:
            fields |= {"draft_model": self._draft, "draft_tokens": rng.choice([1, 3, 7])}
            fields["speculation"] = pb.SPECULATION_AUTO
            return
        elif self._head and rng.random() < 0.5:
            fields["speculation"] = pb.SPECULATION_MTP
        if rng.random() < 0.06:
            fields["prompt_logprobs"] = rng.choice([0, 1])
            if not (self._marked and "chat" in fields) and rng.random() < 0.3:
                for name in NOT_TO_SCORE:
                    fields.pop(name, None)
                fields["max_tokens"] = 0
