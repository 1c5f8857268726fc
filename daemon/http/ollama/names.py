"""
Names of models as Ollama's clients write them.

Clients put a tag behind each name, `:latest` if there is no other, and may put the Hub's address before it. A tag is no
part of a Hub id. It can be part of a short name of the configuration, where `qwen3:8b` is a good name; so only
`:latest` is cut off. What is left is a short name, a Hub id, a directory or "embedded", and the daemon finds it.
"""

from __future__ import annotations

LATEST = ":latest"
"""The tag of names that have none."""
_HUB = ("hf.co/", "huggingface.co/")
"""Addresses of the Hub, as Ollama has them before a Hub id."""


def daemon_name(name: str) -> str:
    """Return the name under which the daemon knows a model."""
    name = name.removesuffix(LATEST)
    for address in _HUB:
        if name.lower().startswith(address):
            return name[len(address) :]
    return name
