"""Each parameter that the pinned SDKs know is honoured, harmless or refused for a reason: none is merely unknown."""

from __future__ import annotations

from daemon.http.anthropic import blocks
from daemon.http.anthropic import request_types as messages
from daemon.http.openai import chat_types, completion_types, embedding_types
from daemon.http.parameters import rows
from daemon.http.responses import item_types as items
from daemon.http.responses import request_types as responses
from tests.http.sdks import results

MODULES = {
    "blocks": blocks,
    "chat_types": chat_types,
    "completion_types": completion_types,
    "embedding_types": embedding_types,
    "items": items,
    "messages": messages,
    "responses": responses,
}


def test_parameters_of_the_sdks_are_known() -> None:
    """A newer SDK may bring others; then a line in a table says what becomes of each."""
    found = results("parameters_program.py")
    assert sum(map(len, found.values())) > 150
    for own, names in found.items():
        module, _, name = own.partition(".")
        known = {parameter for parameter, _, _ in rows(getattr(MODULES[module], name))}
        assert set(names) <= known, own
