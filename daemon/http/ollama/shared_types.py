"""Ollama's types that several of its endpoints use: options, formats, durations, and the figures of an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from daemon.http.parameters import Items, Parameters, Refusal

MOST_SECONDS = 315_576_000_000.0
"""Longest duration, 10,000 years; the daemon takes no longer one."""
FOREVER = -1.0
"""A duration without end."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,20}(?:\.\d{0,20})?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"([-+]?)((?:{_PART.pattern}){{1,8}})", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d{1,20}(\.\d{1,20})?", re.ASCII)


def seconds(value: Any) -> Any:
    """
    Return a duration in seconds, or FOREVER for a negative one. A value that is none is returned as it is.

    Args:
        value: A number of seconds, or text as Go writes durations: "5m", "1h30m", "-1s". Text that is a number means
            seconds.

    Raises:
        ValueError: If text is no duration, or if it is longer than MOST_SECONDS.
    """
    number = _parsed(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    if not (math.isfinite(number) and number <= MOST_SECONDS):
        raise ValueError("must be at most 10,000 years")
    return FOREVER if number < 0 else float(number)


def _parsed(text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    if (found := _DURATION.fullmatch(text)) is None:
        raise ValueError('must be a number of seconds, or a duration such as "5m", "1h30m" or "-1s"')
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total


KeepAlive = Annotated[float | None, BeforeValidator(seconds)]
"""Seconds; FOREVER for a negative number."""


def _schema(value: Any) -> Any:
    if value == "":
        return None
    return {"type": "object"} if value == "json" else value


Format = Annotated[dict[str, Any] | None, BeforeValidator(_schema)]
"""A JSON schema; "json" becomes the schema of all objects, so that errors need not tell two forms apart."""


def _word(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


Think = Annotated[Literal["true", "false", "low", "medium", "high"] | None, BeforeValidator(_word)]
"""Whether and how much a model reasons; true and false become words."""


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_ENGINE = "it is about how llama.cpp runs"


class Options(Parameters):
    """How an answer is generated."""

    temperature: float | None = Field(
        None,
        description="0 (greedy) to 100; unset is the model's own, or 0.8 with `top_p`, `top_k` or `min_p`",
    )
    top_p: float | None = Field(None, description="above 0, up to 1; without effect at temperature 0")
    top_k: int | None = Field(
        None, description="as many of the most likely tokens; 0 or less keeps all; without effect at temperature 0"
    )
    min_p: float | None = Field(None, description="0 to 1; without effect at temperature 0")
    seed: int | None = Field(
        None, description="the same seed and request give the same answer; -1 is random; a greedy one needs none"
    )
    num_predict: int | None = Field(
        None,
        description="most tokens of the answer; -1 and -2 are what the context holds; unset is 32,768 or what it holds",
    )
    stop: Annotated[Items[str] | None, BeforeValidator(_several)] = Field(
        None, description="text, or several, before which the answer stops"
    )
    repeat_penalty: float | None = Field(None, description="above 0, up to 10; for all tokens of prompt and answer")
    presence_penalty: float | None = Field(None, description="-10 to 10")
    frequency_penalty: float | None = Field(None, description="-10 to 10")

    harmless: ClassVar[Mapping[str, str]] = {
        "num_ctx": "the whole context of the model can be used; memory is taken as the conversation grows",
        "num_keep": "a conversation is never cut",
        "num_batch": _ENGINE,
        "num_gpu": _ENGINE,
        "main_gpu": _ENGINE,
        "num_thread": _ENGINE,
        "numa": _ENGINE,
        "low_vram": _ENGINE,
        "f16_kv": _ENGINE,
        "use_mmap": _ENGINE,
        "use_mlock": _ENGINE,
        "mirostat_tau": "it is for `mirostat`, which is refused",
        "mirostat_eta": "it is for `mirostat`, which is refused",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "repeat_last_n": Refusal("`repeat_penalty` is for all tokens", (-1,)),
        "mirostat": Refusal("use `top_p` or `min_p`", (0,)),
        "tfs_z": Refusal("use `top_p` or `min_p`", (1, 1.0)),
        "typical_p": Refusal("use `top_p` or `min_p`", (1, 1.0)),
        "penalize_newline": Refusal("penalties are for all tokens", (True,)),
        "logits_all": Refusal("use `logprobs`", (False,)),
        "vocab_only": Refusal("the daemon loads whole models", (False,)),
        "embedding_only": Refusal("the daemon loads whole models", (False,)),
    }


class Request(Parameters):
    """What all requests about one model have that generate or embed."""

    model: str = Field(
        min_length=1,
        description='short name, Hub id (with or without "hf.co/"), absolute directory, or "embedded"; '
        "`:latest` behind it is cut off",
    )
    keep_alive: KeepAlive = Field(
        None,
        description="seconds, or a duration, that the model stays in memory while idle; negative pins it, 0 unloads it "
        "after the answer",
    )


CONTEXT_IS_KEPT: Mapping[str, Refusal] = {
    "truncate": Refusal("a conversation that is too long is an error, and never cut", (False,)),
    "shift": Refusal("an answer ends where the context does", (False,)),
}
"""Parameters for prompts and answers that are longer than the context."""


class Generation(Request):
    """What all generations have."""

    options: Options | None = Field(None, description="how the answer is generated")
    stream: bool | None = Field(None, description="unless false, the answer comes piece by piece, a JSON object a line")
    format: Format = Field(None, description='"json" for any JSON object, or a JSON schema of the answer')
    think: Think = Field(
        None,
        description="true or false turns reasoning on or off, `low`, `medium` or `high` say how much; false also suits "
        "models that never reason",
    )
    logprobs: bool | None = Field(None, description="log-probabilities of the answer's tokens, with their texts")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="also of so many of the likeliest others; only with `logprobs`"
    )


class TokenScore(BaseModel):
    """The log-probability of a token."""

    token: str
    logprob: float
    bytes: list[int]


class Score(TokenScore):
    """The log-probability of a token of the answer, and of the likeliest at its place."""

    top_logprobs: list[TokenScore]


class Piece(BaseModel):
    """A piece of an answer, or a whole one. Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: str
    logprobs: list[Score]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    warnings: list[str]
