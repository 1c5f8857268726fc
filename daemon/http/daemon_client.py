"""The daemon's client as the door uses it: prompts of conversations get a beginning that stays the same."""

from __future__ import annotations

from collections import Counter
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


class DaemonClient(AsyncClient):
    """
    A client of the daemon.

    Args:
        socket: The daemon's socket.
        hygiene: Whether beginnings of prompts are made steady; see `hygiene.py`.

    Attributes:
        steadied: How many calls each rule changed.
    """

    def __init__(self, socket: Path, hygiene: bool = True) -> None:
        super().__init__(socket)
        self._hygiene = hygiene
        self.steadied: Counter[str] = Counter()

    def generate(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerateStream:
        """Run a prompt, as the base does."""
        prompt, rules = self._steady(prompt)
        self.steadied.update(rules)
        return super().generate(model, prompt, timeout=timeout, **options)

    async def tokenize(
        self, model: str, prompt: Prompt, *, count_only: bool = False, **options: Unpack[TokenizeOptions]
    ) -> Tokens:
        """Turn a prompt into the tokens that `generate` computes, as the base does."""
        return await super().tokenize(model, self._steady(prompt)[0], count_only=count_only, **options)

    def _steady(self, prompt: Prompt) -> tuple[Prompt, list[str]]:
        turns = [] if isinstance(prompt, str) else [one for one in prompt if isinstance(one, Message)]
        return steadied(turns) if self._hygiene and turns else (prompt, [])
