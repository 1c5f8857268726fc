"""Readers of the settings of a group: the addresses of its ranks, and the models that run on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_LAST_PORT = 65535
_MOST_RANKS = 16
_MOST_MODELS = 256

TENSOR, PIPELINE = "tensor", "pipeline"
SHARDINGS = (TENSOR, PIPELINE, "auto", "none")
"""How a model may be cut: each layer, between layers, as it can be but only if it is too large, or not at all."""


BACKENDS = ("auto", "ring", "jaccl")
DEVICES_TEXT = (
    "JSON with a row for each rank: the name of its device to each rank in order, and null for itself, such as "
    '`[[null, "rdma_en5"], ["rdma_en4", null]]`. Only the first machine reads it.'
)
"""What the file `group_devices` has."""


def read_backend(raw: Any, text: bool, home: Path) -> str:
    """Read what moves the tensors of a group."""
    if raw in BACKENDS:
        return str(raw)
    raise ValueError(f"one of {', '.join(BACKENDS)}")


def address_of(text: str) -> tuple[str, int]:
    """
    Return the IPv4 address and the port of "IP:PORT".

    Raises:
        ValueError: If it is none.
    """
    host, mark, port = text.partition(":")
    if not mark or not port.isascii() or not port.isdigit() or int(port) > _LAST_PORT:
        raise ValueError(text)
    return _ip(host), int(port)


def _ip(text: str) -> str:
    """Return the IPv4 address of a machine; a ValueError if it is none, such as 0.0.0.0, which stands for all."""
    import ipaddress  # here: most commands read no such address

    address = ipaddress.IPv4Address(text)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(text)
    return str(address)


def read_ranks(raw: Any, text: bool, home: Path) -> tuple[str, ...]:
    """Read the addresses of a group's ranks: that of this machine, then where each other machine joins."""
    if text and isinstance(raw, str):
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    try:
        if isinstance(raw, list | tuple) and len(raw) != 1 and len(raw) <= _MOST_RANKS:
            for index, one in enumerate(raw):
                _check_rank(index, one)
            if len(set(raw)) == len(raw):
                return tuple(raw)
    except ValueError:
        pass
    raise ValueError(f'"IP" of this machine, then "IP:PORT" of each other one, at most {_MOST_RANKS}')


def _check_rank(rank: int, address: Any) -> None:
    """Raise ValueError for what is neither the address of this machine nor one where another machine is called."""
    if not isinstance(address, str) or (rank and not address_of(address)[1]):
        raise ValueError("no address")
    if not rank:
        _ip(address)


def read_group_listen(raw: Any, text: bool, home: Path) -> str:
    """Read where `mlx-sidecar join` listens: an address of this machine and a port, or nowhere."""
    if raw == "":
        return ""
    try:
        if isinstance(raw, str):
            address_of(raw)
            return raw
    except ValueError:
        pass
    raise ValueError('"IP:PORT" with an address of this machine, or empty')


def read_shardings(raw: Any, text: bool, home: Path) -> dict[str, str]:
    """Read a table of models and how they are cut; as text, "MODEL=tensor" with commas between them."""
    if text and isinstance(raw, str):
        pairs = [part.rpartition("=") for part in raw.split(",") if part.strip()]
        raw = {name.strip(): how.strip() for name, mark, how in pairs if mark}
        if len(raw) != len(pairs):
            raise ValueError("MODEL=tensor, MODEL=auto or MODEL=none, each model once, with commas between them")
    if isinstance(raw, dict) and len(raw) <= _MOST_MODELS and all(how in SHARDINGS for how in raw.values()):
        return {str(name): str(how) for name, how in raw.items()}
    raise ValueError(f"a table of at most {_MOST_MODELS} models, each with one of {', '.join(SHARDINGS)}")
