"""ListModels, Tokenize and Embed over the real socket: what agents ask before and beside their generations."""

from __future__ import annotations

import pytest


@pytest.fixture(name="served", scope="module")
def _served(start_module_daemon: object) -> object:
    return start_module_daemon
