"""Work of the disk tier as a rank does it: in its own directory, and all ranks act on what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from daemon.engine.background.background import Background
from daemon.engine.background.task import KV_DISK, Pending, Task
from daemon.kv.disk.agreement import adopted, told
from daemon.kv.disk.limits import AUTO_BYTES
from daemon.kv.disk.log_lines import shown
from daemon.shared.errors import Reason, SidecarError

T = TypeVar("T")


@dataclass(slots=True)
class Local(Generic[T]):
    """
    A result of which each rank has its own.

    Attributes:
        value: That of this rank; what all act on, once that is known.
        told: What the other ranks must know of it.
    """

    value: T
    told: bytes

    def settle(self, common: bytes) -> None:
        """Take what all ranks act on; on the MLX thread."""
        self.value = adopted(self.value, common)


def together(
    background: Background,
    rank: int,
    directory: str,
    lanes: Iterator[str],
    what: str,
    work: Callable[[], T],
    then: Callable[[T | Exception], None],
) -> None:
    """Run work in the next one of some lanes of the disk; an error of any rank is the result on all."""

    def done() -> Local[T]:
        try:
            value = work()
        except Exception as error:
            # A caller may see it, as the error of an Invalidate. The names of the others are added where all are known.
            text = shown(error) if rank else f"rank {rank}: {shown(error)}"
            raise SidecarError(Reason.MACHINE_FAULT, text, metadata={"directory": directory}) from None
        return Local(value, told(value))

    def settled(result: Local[T] | SidecarError) -> None:
        then(result if isinstance(result, SidecarError) else result.value)

    task: Task[Local[T]] = Task(KV_DISK, "the disk tier", next(lanes), done, what)
    pending: Pending[Local[T]] = Pending(settled)
    background.run(task, pending)


def least_wanted(ranks: Sequence[int | None]) -> int | None:
    """
    Return the budget that all ranks use, in bytes: the smallest.

    Args:
        ranks: What each has configured; None for what suits its disk. Beside a number that is the most that it can be.
    """
    least = min(AUTO_BYTES if wanted is None else wanted for wanted in ranks)
    return None if least == AUTO_BYTES and None in ranks else least
