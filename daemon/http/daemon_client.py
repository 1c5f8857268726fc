"""The daemon's client as the door uses it: prompts of conversations get a beginning that stays the same."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path
from typing import Unpack

from daemon.http.hygiene import steadied
from mlx_sidecar import (
    AsyncClient,
    AsyncGenerateStream,
    GenerateOptions,
    Message,
    Prompt,
    TokenizeOptions,
    Tokens,
)

MOST_AT_ONCE = 512
"""Most requests that run at once, as many as there can be connections."""


class DaemonClient(AsyncClient):
    """
    A client of the daemon.

    Args:
        socket: The daemon's socket.
        hygiene: Whether beginnings of prompts are made steady; see `hygiene.py`.

    Attributes:
        steadied: How many requests each rule changed.
    """

    def __init__(self, socket: Path, hygiene: bool = True) -> None:
        super().__init__(socket)
        self._hygiene = hygiene
        self.steadied: Counter[str] = Counter()
        self._counted: deque[str] = deque(maxlen=MOST_AT_ONCE)

    def generate(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerateStream:
        """Run a prompt, as the base does."""
        prompt, rules = self._steady(prompt)
        self._count(options.get("request_id") or "", rules)
        return super().generate(model, prompt, timeout=timeout, **options)

    async def tokenize(
        self, model: str, prompt: Prompt, *, count_only: bool = False, **options: Unpack[TokenizeOptions]
    ) -> Tokens:
        """Turn a prompt into the tokens that `generate` computes, as the base does."""
        return await super().tokenize(model, self._steady(prompt)[0], count_only=count_only, **options)

    def left_out(self, prompt: Prompt) -> int:
        """Return how many turns of a prompt the daemon does not get, all of them at its beginning."""
        return len(prompt) - len(self._steady(prompt)[0])

    def _count(self, request: str, rules: list[str]) -> None:
        """Count a request once, however often it is sent: `generation.py` sends some again with less."""
        if request not in self._counted:
            self.steadied.update(rules)
            self._counted += [request] if request and rules else []

    def _steady(self, prompt: Prompt) -> tuple[Prompt, list[str]]:
        turns = [] if isinstance(prompt, str) else [one for one in prompt if isinstance(one, Message)]
        return steadied(turns) if self._hygiene and turns else (prompt, [])
