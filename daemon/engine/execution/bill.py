"""
The bill of running requests: bytes that they take at their peak, beside weights and the prefix cache.

KV lives as long as its request, so each request pays its own. A prefix that several requests read is billed once.
What a pass, a join or a growing layer takes is free again before the next one begins. So the largest of them is
billed once, for all requests together:

    bill = sum of KV  +  the largest of: a prefill pass, a pass over short prompts, a decode step with its join

A request is admitted with the smallest pass that is worth computing. Wider ones take what is free at the moment
(`widest`), and are made narrower if that is less. So a long prompt starts where its KV fits, and computes in small
pieces, rather than being refused for the workspace of pieces that it does not need.

The factors were found by comparing bills with peaks, see docs/memory-ledger.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from typing import NamedTuple

from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.engine.memory.memory_budget import DECODE_ROOM, SCORED_TOKENS, kv_need, scoring_need
from daemon.engine.scheduling.policy import MIN_CHUNK, MIN_IDLE_CHUNK
from daemon.kv.mlx.shared_prefix import SharedPrefix

LEAST_WIDTH = MIN_IDLE_CHUNK
"""Tokens of the passes that a request is admitted for."""

COPIES = 2.5
"""Extra times that a layer exists while it grows, is padded or is joined: the old one, a padded one, parts of both."""

ROW_VECTORS = 12
"""Vectors of the vocabulary's width, 4 bytes each, for a row that is sampled: logits, masks, penalties, their order."""

TAIL_ROWS = 65
"""Most tokens of a last chunk that computes logits too."""

_SHORT = 160
"""Tokens of a prompt in a shared pass, with its padding."""


class Bill(NamedTuple):
    """
    Bytes of requests.

    Attributes:
        kv: Those that they hold while they run.
        work: Those that are in use for a moment.
    """

    kv: int
    work: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.kv + self.work


def prompt_bill(models: Rows[LoadedModel], tokens: int, left: int, rows: int, width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of a prompt before its first token is sampled.

    Args:
        models: Its model, and its draft model if it has one.
        tokens: Tokens of the prompt.
        left: Tokens that may be generated.
        rows: Samples.
        width: Tokens of a pass.
    """
    wide = min(width + MIN_CHUNK, tokens)
    kv = rows * sum(kv_need(model.layout, tokens, left, width) for model in models)
    work = max(model.work.bytes(wide, tokens - wide) + min(TAIL_ROWS, wide) * 4 * model.vocab_size for model in models)
    return Bill(kv, max(work, _step(models, [(tokens, left)] * rows)))


def bill(prefilling: Iterable[Sequence], groups: Iterable[Rows[Sequence]], width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of running sequences.

    Args:
        prefilling: Sequences with a prompt to compute.
        groups: Those that decode, by the batch that they share.
        width: Tokens of a pass.
    """
    kv, works, short = 0, [0], []
    prefixes: set[SharedPrefix] = set()
    for sequence in prefilling:
        prefixes |= _read(sequence)
        own = _prompt(sequence, width)
        kv, works = kv + own.kv, [*works, own.work]
        short.append(sequence)
    for rows in groups:
        prefixes |= {prefix for row in rows for prefix in _read(row)}
        lengths = [_length(row) for row in rows]
        longest = max(sum(length) - row.kv.base for length, row in zip(lengths, rows, strict=True))
        kv += sum(kv_need(kv.loaded.layout, row.kv.base + longest, 0) - _shared(kv) for row in rows for kv in row.kvs)
        works.append(_step([kv.loaded for kv in rows[0].kvs], lengths, [row.kv.base for row in rows]))
    kv += sum(memory.nbytes for memory in {prefix.memory for prefix in prefixes})
    return Bill(kv, max(*works, _together(short, width)))


def widest(prefilling: Rows[Sequence], wanted: int, spare: Callable[[int], int]) -> int:
    """
    Return the most tokens of the next pass over prompts of a model that memory allows.

    Args:
        prefilling: Sequences of the model with a prompt to compute.
        wanted: As many as time allows.
        spare: Frees cached prefixes until so many bytes are free, as far as that helps, and returns how many are.
    """
    least = bill(prefilling, ()).total
    if wanted <= LEAST_WIDTH:
        return LEAST_WIDTH
    free = spare(bill(prefilling, (), wanted).total - least)
    while wanted > LEAST_WIDTH and bill(prefilling, (), wanted).total - least > free:
        wanted = max(LEAST_WIDTH, wanted * 3 // 4)
    return wanted


def _prompt(sequence: Sequence, width: int) -> Bill:
    models, scored = [kv.loaded for kv in sequence.kvs], sequence.request.prompt_logprobs is not None
    width = min(width, SCORED_TOKENS) if scored else width
    own = prompt_bill(models, len(sequence.prompt), sequence.request.max_tokens, sequence.rows, width)
    shared = sum(map(_shared, sequence.kvs))
    # A pass behind a shared prefix builds a layer of prefix and tail as one array.
    whole = max((kv.loaded.layout.largest_layer * _shared(kv) for kv in sequence.kvs), default=0)
    work = own.work + int(whole) + scoring_need(sequence.loaded.vocab_size) * scored
    return Bill(own.kv - sequence.rows * shared, work)


def _read(sequence: Sequence) -> set[SharedPrefix]:
    """Return the prefixes that a sequence reads together with others: they are billed once."""
    return {prefix for kv in sequence.kvs if kv.common is not None for prefix in kv.common.path}


def _shared(kv: SequenceKV) -> int:
    """Return the bytes of a sequence's KV that are in no array of its own."""
    return kv.loaded.layout.full_bytes(max(kv.base, kv.expected))


def _together(prompts: Rows[Sequence], width: int) -> int:
    """Return the work of a pass over the short ends of several prompts; their KV is copied into one batch."""
    if len(prompts) < 2:
        return 0
    loaded = prompts[0].loaded
    lengths = [(len(prompt.prompt), min(prompt.request.max_tokens, DECODE_ROOM)) for prompt in prompts]
    tokens = min(width, sum(min(length, _SHORT) for length, _ in lengths))
    return loaded.work.bytes(tokens, max(length for length, _ in lengths)) + _step([loaded], lengths)


def _step(models: Rows[LoadedModel], rows: Rows[tuple[int, int]], bases: Rows[int] = ()) -> int:
    """Return the work of a decode step: a layer of all rows is copied as it grows, and each row is sampled."""
    longest = max(held for held, _ in rows)
    own = [sum(kv_need(model.layout, *row) for row in rows) for model in models]
    own = [need - sum(map(model.layout.full_bytes, bases)) for need, model in zip(own, models, strict=True)]
    return sum(
        int(COPIES * model.layout.largest_layer * need)
        + model.work.bytes(len(rows), longest)
        + len(rows) * ROW_VECTORS * 4 * model.vocab_size
        for model, need in zip(models, own, strict=True)
    )


def _length(row: Sequence) -> tuple[int, int]:
    """Return the tokens that a row holds, and those that it has room for beyond."""
    done = len(row.generated)
    return len(row.prompt) + done, min(row.request.max_tokens - done, DECODE_ROOM)
