"""What all pieces of Ollama's answers have: times, the reason of the end, counts, and log-probabilities. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from daemon.http.generation import finite
from daemon.http.ollama.shared_types import Score, TokenScore
from daemon.shared.wording import date
from mlx_sidecar import Finished, TokenLogprob


@dataclass(slots=True)
class Figures:
    """
    The fields of an answer besides its words.

    Attributes:
        model: Name of the model, as the request has it: clients compare it.
        now: Returns seconds since 1970.
        loading: Seconds that a load took before the generation was asked for.
        warnings: What the daemon has to say about the request. This API has no place for it; clients skip the field.
        begun: When the request came.
    """

    model: str
    now: Callable[[], float] = time
    loading: float = 0.0
    warnings: tuple[str, ...] = ()
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.now()

    def head(self) -> dict[str, Any]:
        """Return the fields that each piece begins with."""
        return {"model": self.model, "created_at": timestamp(self.now())}

    def end(self, finished: Finished) -> dict[str, Any]:
        """Return the fields of the last piece."""
        times, usage = finished.timings, finished.usage
        prefill = sum(each or 0.0 for each in (times.lookup, times.restore, times.prefill))
        return {
            "done": True,
            "done_reason": "length" if finished.reason == "length" else "stop",
            "total_duration": nanoseconds(self.now() - self.begun),
            "load_duration": nanoseconds(self.loading + (times.load or 0.0)),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(prefill),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(times.decode or 0.0),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }


def nanoseconds(seconds: float) -> int:
    """Return a duration as Ollama's API has it."""
    return max(0, round(seconds * 1e9))


def timestamp(seconds: float) -> str:
    """Return a time since 1970 as RFC 3339 has it, or the nearest that it has."""
    return date(seconds).isoformat(timespec="microseconds").replace("+00:00", "Z")


def scores(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the field with the log-probabilities of tokens; no field if there are none."""
    if not logprobs:
        return {}
    return {"logprobs": [Score(**_score(one.text, one.logprob), top_logprobs=_top(one)) for one in logprobs]}


def _top(token: TokenLogprob) -> list[TokenScore]:
    return [TokenScore(**_score(one.text, one.logprob)) for one in token.top]


def _score(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}
