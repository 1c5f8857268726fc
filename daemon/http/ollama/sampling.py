"""Ollama's parameters of generations that are the same for all endpoints, as options of the daemon's. Pure."""

from __future__ import annotations

from daemon.http.errors import invalid
from daemon.http.ollama.shared_types import Generation, Options
from mlx_sidecar import GenerateOptions

SEEDS = 1 << 64
"""Seeds of the daemon are below this."""
TEMPERATURE = 0.8
"""Ollama's temperature, for requests that have none and choose among several tokens."""
MOST_TOKENS = 2**31 - 1
"""More than any context holds; it is lowered to what is left of it."""
RANDOM = -1
"""The seed that asks for another answer each time."""


def generation(request: Generation) -> GenerateOptions:
    """
    Return the options of a generation but for its prompt.

    What is unset is the model's own.

    Raises:
        Problem: If a parameter has no effect without another.
    """
    options = _sampling(request.options or Options.model_validate({}))
    options["model_defaults"] = True
    if request.format is not None:
        options["json_schema"] = request.format
    _add_thinking(options, request.think)
    if request.logprobs:
        options["top_logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise invalid("top_logprobs", "is only for requests with `logprobs`")
    return options


def _add_thinking(options: GenerateOptions, think: str | None) -> None:
    if think in ("true", "false"):
        options["enable_thinking"] = think == "true"
    elif think is not None:
        options["reasoning_effort"] = think


def _sampling(given: Options) -> GenerateOptions:
    choices = _choices(given)
    temperature = given.temperature
    if temperature is None and choices:
        temperature = TEMPERATURE
    options = GenerateOptions(
        temperature=temperature,
        max_tokens=_most_tokens(given.num_predict),
        repetition_penalty=given.repeat_penalty,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        stop=given.stop,
    )
    if temperature != 0:
        options.update(choices)
        if given.seed not in (None, RANDOM):
            options["seed"] = given.seed % SEEDS
    return options


def _choices(given: Options) -> GenerateOptions:
    """Return the options that choose among several tokens: the daemon refuses them for a greedy answer."""
    options = GenerateOptions()
    if given.top_p is not None:
        options["top_p"] = given.top_p
    if given.top_k is not None:
        options["top_k"] = max(0, given.top_k)
    if given.min_p is not None:
        options["min_p"] = given.min_p
    return options


def _most_tokens(given: int | None) -> int | None:
    if given is None:
        return None
    if given in (-1, -2):
        return MOST_TOKENS
    if given < 1:
        raise invalid("options.num_predict", "must be 1 or more, or -1 for what the context holds")
    return given
