"""A Generate request as the engine runs it: frozen, checked, with the defaults of its options filled in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from daemon.engine.prompt.places import Places


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """
    Sampling options; the proto's `Sampling` tells units and ranges.

    The defaults are greedy sampling without penalties.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalises(self) -> bool:
        """Whether the tokens before the next one change its logits."""
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty) or bool(self.frequency_penalty)


class Speculation(IntEnum):
    """What may guess the next tokens of an answer; the numbers are those of the proto's `Speculation`."""

    AUTO = 1
    OFF = 2
    NGRAM = 3
    DRAFT = 4
    MTP = 5


@dataclass(frozen=True, slots=True)
class Request:
    """
    A Generate request with the token ids of its prompt.

    Attributes:
        call_id: The call that it came with; events go there.
        request_id: The id that callers and logs know it by.
        model_name: The name that its model was asked for by.
        prompt: Ids of the prompt, at least one.
        max_tokens: Most tokens to generate; 0 only scores the prompt.
        sampling: How tokens are sampled.
        stop_ids: Ids that end the answer.
        message_ends: Ids that end a message within the prompt; prefixes are resumable behind them.
        top_logprobs: Alternatives that each token is reported with; None if no log-probabilities are wanted.
        priority: Higher starts and prefills first.
        warnings: What is not as the caller had it, a sentence each.
        index: Which of the answers to the prompt it is, from 0.
        prompt_logprobs: Alternatives that each token of the prompt is reported with; None if no log-probabilities of
            it are wanted.
        speculation: What may guess its next tokens.
        places: Where the prompt's tokens lie in the request; None if that is not known.
        program: The program that called; empty if it is not known. Programs take turns.
    """

    call_id: int
    request_id: str
    model_name: str
    prompt: list[int]
    max_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int]
    message_ends: frozenset[int]
    top_logprobs: int | None = None
    priority: int = 0
    warnings: tuple[str, ...] = ()
    index: int = 0
    prompt_logprobs: int | None = None
    speculation: Speculation = Speculation.AUTO
    places: Places | None = None
    program: str = ""
