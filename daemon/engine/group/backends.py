"""Chooses what moves tensors between the ranks of a group, MLX's ring or JACCL, and joins the ranks by it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from daemon.shared.small_file import read_small
from daemon.v1 import ipc_pb2 as ipc

JACCL = "jaccl"
_MOST_BYTES = 1 << 16

Init = Callable[..., mx.distributed.Group]
"""`mx.distributed.init`, or what stands for it."""


class BackendError(Exception):
    """The backend that was asked for cannot be had; the text says why."""


def has_jaccl() -> bool:
    """Return whether this machine's MLX can use RDMA over Thunderbolt."""
    return bool(mx.distributed.is_available(JACCL))


def chosen(wanted: str, file: Path | None, members: Sequence[ipc.GroupMember]) -> str:
    """
    Return the devices between the ranks as JSON if JACCL moves the tensors; an empty text if the ring does.

    Args:
        wanted: "auto", "ring" or "jaccl".
        file: The file with the devices.
        members: The ranks.

    Raises:
        BackendError: If JACCL was asked for and cannot be had, or the file has another form.
    """
    lacking = [rank for rank, member in enumerate(members) if not member.jaccl]
    if wanted == "ring" or (wanted == "auto" and (file is None or lacking)):
        return ""
    if lacking:
        raise BackendError(f"MLX has no JACCL on rank {lacking[0]}, it needs macOS 26.2; set group_backend to ring")
    if file is None:
        raise BackendError("group_backend is jaccl, but group_devices is not set")
    try:
        rows = json.loads(read_small(file, _MOST_BYTES))
    except OSError as error:
        raise BackendError(f"group_devices {file} cannot be read: {error.strerror}") from None
    except ValueError:
        rows = None
    if not _joins(rows, len(members)):
        raise BackendError(f"group_devices {file} needs a row for each of {len(members)} ranks, with a device for each")
    return json.dumps(rows)


def _joins(rows: object, ranks: int) -> bool:
    """Return whether each rank has a device to each other one."""
    return (
        isinstance(rows, list)
        and len(rows) == ranks
        and all(isinstance(row, list) and len(row) == ranks for row in rows)
        and all(rank == other or rows[rank][other] for rank in range(ranks) for other in range(ranks))
    )


def join(setup: ipc.GroupSetup, rank: int, init: Init = mx.distributed.init) -> mx.distributed.Group:
    """
    Join the other ranks. MLX reads where they are from the environment, and from files that it names.

    Raises:
        RuntimeError: If MLX cannot reach a rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ranks.json"
        os.environ["MLX_RANK"] = str(rank)
        if setup.devices:
            file.write_text(setup.devices)
            os.environ |= {"MLX_IBV_DEVICES": str(file), "MLX_JACCL_COORDINATOR": setup.ring[0]}
            return init(strict=True, backend=JACCL)
        file.write_text(json.dumps([[address] for address in setup.ring]))
        os.environ["MLX_HOSTFILE"] = str(file)
        return init(strict=True, backend="ring")
