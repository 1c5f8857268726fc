"""
Keeps parts of libraries out of the door's process: it never uses them, and they would cost a tenth of memory and start.

Libraries import them for what a daemon without a port, a terminal and TLS has no use for. `keep_out` has to run first.

    rich           structlog's tracebacks on a console
    _hashlib       OpenSSL's digests; hashlib has the same ones of Python's own, but for a few builds
    uvicorn.main   uvicorn's command line, with click and the supervision of several processes
    ssl            TLS: asyncio does without; uvicorn takes two numbers of it, as defaults of options
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from daemon.shared.kept_out import unused_digests


class StandIn(ModuleType):
    """
    A module with a few names of the real one, which takes over if any other name is asked for.

    Args:
        name: Name of the real module.
        names: The names with their values.
    """

    def __init__(self, name: str, **names: Any) -> None:
        super().__init__(name)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        """Return a name of the real module."""
        if name.startswith("__"):  # asked of every module, for instance by `inspect`
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def keep_out() -> None:
    """Keep the modules of the table out of this process."""
    absent: dict[str, Any] = sys.modules
    absent |= dict.fromkeys(("rich", "ssl", *unused_digests()))
    import asyncio  # noqa: F401 - sees that there is no TLS

    sys.modules["ssl"] = StandIn("ssl", PROTOCOL_TLS_SERVER=16, CERT_NONE=0)
    sys.modules["uvicorn.main"] = StandIn("uvicorn.main", Server=None, main=None, run=None)
