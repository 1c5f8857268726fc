"""Names that the resolver refuses, and why."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.cache.resolver import Resolver, Wanted
from daemon.shared.errors import SidecarError


def refusal(resolver: Resolver, name: str, **options: Any) -> SidecarError:
    """Return the error of a name that must be refused."""
    with pytest.raises(SidecarError) as caught:
        resolver.resolve(Wanted(name, **options))
    return caught.value
