"""OpenAI's parameters of generations that are the same for all endpoints, and the count of tokens in their answers."""

from __future__ import annotations

from daemon.http.errors import invalid
from daemon.http.openai.shared_types import PromptDetails, Sampled
from daemon.http.openai.shared_types import Usage as Counted
from mlx_sidecar import GenerateOptions, Usage

SEEDS = 1 << 64
"""Seeds of the daemon are below this."""


def sampling(request: Sampled) -> GenerateOptions:
    """
    Return the options of a request that tell how tokens are chosen, and when to stop.

    Values that ask for nothing are left out, as clients send them all the time.

    Raises:
        Problem: If a token id of `logit_bias` is none.
    """
    greedy = request.temperature == 0
    options = GenerateOptions(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=None if greedy or request.top_p == 1 else request.top_p,
        top_k=None if greedy or request.top_k == -1 else request.top_k,
        min_p=None if greedy else request.min_p,
        seed=None if request.seed is None else request.seed % SEEDS,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_bias(request.logit_bias),
        stop=request.stop,
    )
    if request.cache_salt:
        options["salt"] = request.cache_salt
    return options


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if not given:
        return None
    try:
        return {int(token): value for token, value in given.items()}
    except ValueError:
        raise invalid("logit_bias", "has a key that is no token id") from None


def usage(counted: Usage) -> Counted:
    """Return the tokens of an answer."""
    return Counted(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=counted.cached_tokens),
    )
