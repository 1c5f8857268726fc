"""The workloads of `python -m benchmarks`: functions from a `Bench` to a `Result`."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.figures import Result
from benchmarks.workloads.agents import agents
from benchmarks.workloads.decode import decode
from benchmarks.workloads.fairness import fairness
from benchmarks.workloads.guesses import guesses
from benchmarks.workloads.index import index
from benchmarks.workloads.kv_bytes import kv_bytes
from benchmarks.workloads.overhead import overhead
from benchmarks.workloads.prefix import prefix
from benchmarks.workloads.readers import readers
from benchmarks.workloads.second_turn import second_turn
from benchmarks.workloads.seeded import seeded
from benchmarks.workloads.session import session
from benchmarks.workloads.startup import startup
from benchmarks.workloads.switching import switching
from benchmarks.workloads.trie import trie
from benchmarks.workloads.two_models import two_models

WORKLOADS: dict[str, Callable[[Bench], Result]] = {
    "prefix": prefix,
    "agents": agents,
    "decode": decode,
    "readers": readers,
    "switching": switching,
    "kv-bytes": kv_bytes,
    "overhead": overhead,
    "second-turn": second_turn,
    "session": session,
    "seeded": seeded,
    "index": index,
    "fairness": fairness,
    "guesses": guesses,
    "two-models": two_models,
    "startup": startup,
    "trie": trie,
}
"""Workloads by their name on the command line and in the results, in the order of the page."""
