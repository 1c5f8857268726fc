"""Prefixes that all ranks of a group have on their disks."""

from __future__ import annotations

from mlx_sidecar import Client, Completion
from tests.support.daemons import wait_until
from tests.support.groups import RunningGroup

PROMPT = "The harbour master wrote down the name of each ship, and on the fourth of June he wrote: " * 6


def ask(client: Client, model: str, **options: object) -> Completion:
    """Return the answer to the prompt."""
    return client.complete(model, PROMPT, max_tokens=16, **options)  # type: ignore[arg-type]


def written(group: RunningGroup, client: Client, model: str, known: int = 0) -> Completion:
    """Use a prefix of a model twice, wait until all ranks have written it, and return the answer."""
    cold = ask(client, model)
    assert ask(client, model).token_ids == cold.token_ids

    def all_have() -> bool:
        ranks = [group.pieces(rank).keys() for rank in range(1 + len(group.others))]
        return len(ranks[0]) > known and all(each == ranks[0] for each in ranks)

    wait_until(all_have, "all ranks have written it")
    return cold
