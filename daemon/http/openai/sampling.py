"""OpenAI's parameters of generations that are the same for all endpoints, and the count of tokens in their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from daemon.http.errors import invalid
from daemon.http.openai.shared_types import CompletionDetails, PromptDetails, Sampled
from daemon.http.openai.shared_types import Usage as Counted
from mlx_sidecar import GenerateOptions, Usage

SEEDS = 1 << 64
"""Seeds of the daemon are below this."""


def sampling(request: Sampled) -> GenerateOptions:
    """
    Return the options of a request that tell how tokens are chosen, and when to stop.

    What is unset is the model's own. Values that ask for nothing are left out, as clients send them all the time. A
    greedy answer needs no seed to be repeatable.

    Raises:
        Problem: If a token id of `logit_bias` is none.
    """
    greedy = request.temperature == 0
    options = GenerateOptions(
        max_tokens=request.max_tokens,
        model_defaults=True,
        temperature=request.temperature,
        seed=None if greedy or request.seed is None else request.seed % SEEDS,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_bias(request.logit_bias),
        stop=request.stop,
    )
    if not greedy:
        options.update(_choices(request))
    if request.cache_salt:
        options["salt"] = request.cache_salt
    if request.n not in (None, 1):
        options["samples"] = request.n
    return options


def _choices(request: Sampled) -> GenerateOptions:
    """Return the options that choose among several tokens, without those that keep all of them."""
    options = GenerateOptions()
    if request.top_p not in (None, 1):
        options["top_p"] = request.top_p
    if request.top_k not in (None, 0, -1):
        options["top_k"] = request.top_k
    if request.min_p not in (None, 0):
        options["min_p"] = request.min_p
    return options


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if not given:
        return None
    try:
        return {int(token): value for token, value in given.items()}
    except ValueError:
        raise invalid("logit_bias", "has a key that is no token id") from None


def total(answers: Sequence[Usage]) -> Usage:
    """Return the tokens of several answers to one prompt, which counts once."""
    return replace(
        answers[0],
        completion_tokens=sum(one.completion_tokens for one in answers),
        reasoning_tokens=sum(one.reasoning_tokens for one in answers),
    )


def usage(counted: Usage) -> Counted:
    """Return the tokens of an answer."""
    return Counted(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=counted.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=counted.reasoning_tokens),
    )
