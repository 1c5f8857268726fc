"""
Compares the models on the disks of two ranks: the first rank sends names, the other one answers what it has.

    first rank                                    another rank
        | GroupModels: names, a sealed frame -------> | looks, in a process of its own
        | <---- GroupModels: what it found, sealed    |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.cache.on_disk import OnDisk, look
from daemon.server.group.handshake import GroupError, Session
from daemon.shared.config import Config
from daemon.shared.frames import FrameError
from daemon.shared.seals import Opener, Seal
from daemon.v1 import ipc_pb2 as ipc

SECONDS = 60.0
"""Most time for a question and its answer. Each file of less than 64 MiB may have to be hashed."""
LOOK_SECONDS = 50.0
"""Most time of the look alone, so that the side that asks hears of a longer one."""

_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Compared:
    """
    A model on the first rank and on another one.

    Attributes:
        model: Its name.
        here: What the first rank has.
        there: What the other rank has.
        state: "same", "different", "missing" (one of them cannot load it), or "unknown": not all of it was hashed.
        advice: What to do, in a sentence without its full stop; empty if nothing is.
    """

    model: str
    here: OnDisk
    there: OnDisk
    state: str
    advice: str


async def ask(session: Session, models: Sequence[str]) -> list[OnDisk]:
    """
    Return what the other side has of some models.

    Raises:
        GroupError: If it closes the connection, could not look, or its answer is none.
        OSError: If the connection fails, or no answer comes in time.
    """
    question = ipc.GroupModels(models=[ipc.GroupModel(model=model) for model in models])
    async with asyncio.timeout(SECONDS):
        await _send(session, session.down, question)
        answer = await _receive(session, session.up)
    if answer.problem:
        raise GroupError(f"could not look for models: {answer.problem}")
    found = [OnDisk(one.model, one.fingerprint, one.size_bytes, one.problem) for one in answer.models]
    if len(found) != len(models):
        raise GroupError("told of other models than it was asked for")
    return found


async def answer(session: Session, config: Config) -> None:
    """
    Look for the models that the other side asks for, and tell what there is.

    Raises:
        GroupError: If it closes the connection, or asks for none.
        OSError: If the connection fails, or no question comes in time.
    """
    async with asyncio.timeout(SECONDS):
        question = await _receive(session, session.down)
        await _send(session, session.up, await _found(config, [one.model for one in question.models]))


async def _found(config: Config, names: Sequence[str]) -> ipc.GroupModels:
    """Look for models, and return the answer."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            found = await look(config, names)
    except TimeoutError:
        return ipc.GroupModels(problem=f"its disks did not answer in {LOOK_SECONDS:.0f} s")
    except OSError as error:
        return ipc.GroupModels(problem=error.strerror)
    models = [
        ipc.GroupModel(model=one.model, fingerprint=one.fingerprint, size_bytes=one.size_bytes, problem=one.problem)
        for one in found
    ]
    return ipc.GroupModels(models=models)


def compare(here: OnDisk, there: OnDisk, address: str) -> Compared:
    """Compare a model of this machine with that of the rank at an address."""
    state, advice = _judged(here, there, address)
    return Compared(here.model, here, there, state, advice)


def _judged(here: OnDisk, there: OnDisk, address: str) -> tuple[str, str]:
    name = here.model
    if problem := here.problem:
        return "missing", f"{name} cannot be loaded on this machine: {problem}"
    if problem := there.problem:
        return "missing", f"{name} cannot be loaded on {address}: {problem}"
    known = bool(here.fingerprint and there.fingerprint)
    if here.size_bytes != there.size_bytes or (known and here.fingerprint != there.fingerprint):
        fix = "copy the whole directory from this machine" if name.startswith("/") else "pull the same revision on both"
        return "different", f"{name} has another content on {address} than on this machine; {fix}"
    if known:
        return "same", ""
    return "unknown", f"{name} was not hashed on both machines yet; its first load compares it with {address}"


async def _send(session: Session, key: bytes, message: ipc.GroupModels) -> None:
    frame = Seal(key).frame(message.SerializeToString())
    await asyncio.get_running_loop().sock_sendall(session.connection, frame)


async def _receive(session: Session, key: bytes) -> ipc.GroupModels:
    """Return the only message of a direction."""
    opener = Opener(key)
    while True:
        piece = await asyncio.get_running_loop().sock_recv(session.connection, _PIECE)
        if not piece:
            raise GroupError("closed the connection")
        try:
            for body in opener.add(piece):
                return ipc.GroupModels.FromString(body)
        except FrameError as error:
            raise GroupError(str(error)) from None
