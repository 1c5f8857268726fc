"""The workers that render the corpus."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.corpus.rendering import RecordedTemplates


@pytest.fixture(name="templates", scope="session")
def _templates() -> Iterator[RecordedTemplates]:
    """Return workers of the engine's own kind."""
    templates = RecordedTemplates(time.monotonic)
    yield templates
    templates.close()
