"""
The bill of running requests: bytes that they take at their peak, beside weights and the prefix cache.

KV lives as long as its request, so each request pays its own. A prefix that several requests read is billed once.
What a pass, a join or a growing layer takes is free again before the next one begins. So the largest of them is
billed once, for all requests together:

    bill = sum of KV  +  the largest of: a prefill pass, a pass over short prompts, a decode step with its join

A request is admitted with the smallest pass that is worth computing. Wider ones take what is free at the moment
(`widest`), and are made narrower if that is less. So a long prompt starts where its KV fits, and computes in small
pieces, rather than being refused for the workspace of pieces that it does not need.

Copies follow from the code: a layer of all rows is copied at a time, and the layers before it are free again
(`Batch.join`, `Batch.settle`, and mlx-lm's caches when they grow). docs/memory-ledger.md compares bills with peaks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from itertools import accumulate, chain
from typing import NamedTuple

from daemon.cache.identity import ModelKey
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.prefill import SHORT
from daemon.engine.execution.sampling import LEAST_VECTORS, row_vectors
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.engine.execution.speculation import MOST_FED, most_guesses
from daemon.engine.memory.memory_budget import DECODE_ROOM, SCORED_TOKENS, kv_need, scoring_need
from daemon.engine.scheduling.policy import MIN_CHUNK, MIN_IDLE_CHUNK
from daemon.engine.scheduling.prefill_plan import PASS_TOKENS
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.mlx.layout import capacity_for
from daemon.kv.mlx.shared_prefix import SharedPrefix
from daemon.kv.mlx.workspace import PROBE

LEAST_WIDTH = MIN_IDLE_CHUNK
"""Tokens of the passes that a request is admitted for."""

MOVED = 1.15
"""Times that a layer exists beside itself while rows leave, or while a window begins to rotate; MLX prepares others."""

GROWN = 1.25
"""The same while it grows: the new one, and what MLX prepares of the next layers meanwhile."""

JOINED = 2.0
"""The same while rows join: padded, and in one array."""

TAIL_ROWS = 65
"""Most tokens of a last chunk that computes logits after all of them: `prefill.TAIL`."""

LEAST_FED = 8
"""Tokens that a step is billed at least: buffers of one token are rounded up, and masks and positions have one each."""


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


class BilledRow(NamedTuple):
    """
    What a row is billed for.

    Attributes:
        held: Tokens that it holds.
        room: Tokens that it has room for beyond.
        vectors: Vectors of the vocabulary's width that a step of it takes.
        fed: Tokens that a step feeds: one, and guesses.
        grows: Whether it may need more room than it was given when it began.
        base: How many of the tokens that it holds are in arrays that it shares with other rows.
        generated: How many of the tokens that it holds are its answer.
        reused: Tokens of a prompt that were restored, or that others have computed or will.
        done: Those, and those that are computed.
    """

    held: int
    room: int
    vectors: int = LEAST_VECTORS
    fed: int = 1
    grows: bool = False
    base: int = 0
    generated: int = 0
    reused: int = 0
    done: int = 0


def prompt_bill(models: Rows[LoadedModel], row: BilledRow, rows: int = 1, width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of a prompt until its first tokens are sampled.

    Args:
        models: Its model, and its draft model if it has one.
        row: The prompt.
        rows: Samples.
        width: Tokens of a pass.
    """
    wide = min(width + MIN_CHUNK, row.held, max(LEAST_WIDTH, row.held - row.done) + MIN_CHUNK)
    chunk = min(width + MIN_CHUNK, row.held - row.reused)  # a window keeps its last one until the next
    end = _elsewhere(row, row.held + row.room)
    needs = [kv_need(model.layout, row.held, row.room, chunk, prompt=True) for model in models]
    computed = sum(needs) - sum(model.layout.full_bytes(end) for model in models)
    decoding = _decoding(models, [row] * rows)
    tails = [min(TAIL_ROWS if model.last is None else 1, wide) * 4 * model.vocab_size for model in models]
    # A pass writes the windows of a layer anew, beside those before it.
    anew = [int(JOINED * model.layout.layer_bytes(row.held, reserved=True)) for model in models]
    passes = [model.work.bytes(wide, row.held - wide) for model in models]
    works = list(map(sum, zip(passes, tails, anew, strict=True)))
    kv = max(computed, decoding.kv)
    return Bill(kv, max(computed + max(works), decoding.total) - kv)


def bill(prefilling: Iterable[Sequence], groups: Iterable[Rows[Sequence]], width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of running sequences.

    Args:
        prefilling: Sequences with a prompt to compute.
        groups: Those that decode, by the batch that they share.
        width: Tokens of a pass.
    """
    prompts, batches = list(prefilling), list(groups)
    bills = [_prompt(sequence, width) for sequence in prompts]
    bills += [_decoding(_models(rows[0]), [_row(row, alone=len(rows) == 1) for row in rows]) for rows in batches]
    works = [_joining(alike, batches, width) for alike in _by_model(prompts)]
    read = {prefix.memory for sequence in (*prompts, *chain(*batches)) for prefix in _read(sequence)}
    kv = sum(part.kv for part in bills) + sum(memory.nbytes for memory in read)
    kv += sum(_of_head(sequence) for sequence in (*prompts, *chain(*batches)))
    return Bill(kv, max([0, *works, *(part.work for part in bills)]))


def widest(prefilling: Rows[Sequence], wanted: int, spare: Callable[[int], int]) -> int:
    """
    Return the most tokens of the next pass over prompts of a model that memory allows.

    Args:
        prefilling: Sequences of the model with a prompt to compute.
        wanted: As many as time allows.
        spare: Frees cached prefixes until so many bytes are free, as far as that helps, and returns how many are.
    """
    if wanted <= LEAST_WIDTH:
        return LEAST_WIDTH
    least = bill(prefilling, ()).total
    more = bill(prefilling, (), wanted).total - least
    free = spare(more)
    while wanted > LEAST_WIDTH and more > free:
        wanted = max(LEAST_WIDTH, wanted * 3 // 4)
        more = bill(prefilling, (), wanted).total - least
    return wanted


def _prompt(sequence: Sequence, width: int) -> Bill:
    scored = sequence.request.prompt_logprobs is not None
    width = min(width, SCORED_TOKENS) if scored else width
    models, rows, row = _models(sequence), sequence.rows, _row(sequence)
    own = prompt_bill(models, row, rows, width)
    # A prompt that has not begun shall hold no wide chunk yet when another one is computed.
    kv = own.kv if sequence.kv.cache is not None else prompt_bill(models, row, rows).kv
    work = own.total - kv + scoring_need(sequence.loaded.vocab_size) * scored
    # A pass behind a shared prefix builds a layer of prefix and tail as one array.
    work += max(kv.loaded.layout.layer_bytes(_apart(kv)) if _apart(kv) else 0 for kv in sequence.kvs)
    return Bill(kv, work)


def head_bytes(model: LoadedModel, tokens: int) -> int:
    """Return the bytes of the KV of a model's MTP head for so many tokens."""
    return 0 if isinstance(model.mtp, str) or not tokens else model.mtp.kv_bytes(tokens)


def _of_head(sequence: Sequence) -> int:
    row = _row(sequence)
    return 0 if sequence.head is None else head_bytes(sequence.loaded, row.held + row.room)


def _read(sequence: Sequence) -> set[SharedPrefix]:
    """Return the prefixes that a sequence reads together with others: they are billed once."""
    return {prefix for kv in sequence.kvs if kv.common is not None for prefix in kv.common.path}


def _apart(kv: SequenceKV) -> int:
    """Return the leading tokens of a sequence whose full attention is in no array of its own."""
    return max(kv.base, kv.expected)


def _elsewhere(row: BilledRow, tokens: int) -> int:
    """Return how many tokens of the room for a sequence are in a shared prefix: the tail grows in steps of its own."""
    return capacity_for(tokens) - capacity_for(tokens - row.base)


def _decoding(models: Rows[LoadedModel], rows: Rows[BilledRow]) -> Bill:
    """
    Return the bill of rows that decode together.

    All of them end at the place of the longest. So each has room for that, and for the most that any has left.
    """
    each = max(1, MOST_FED // len(rows)) if len(rows) > 1 else rows[0].fed
    most = max(min(row.fed, each) for row in rows)
    held = max(row.held - row.base for row in rows)
    # A row without guesses is padded to the row of its pass with the most.
    longest = held + max(row.room for row in rows) + (most - 1) * (len(rows) > 1)
    grows = any(row.grows or row.held - row.base != held for row in rows)
    whole = sum(kv_need(model.layout, row.base + longest, 0, most) for model in models for row in rows)
    ends = [_elsewhere(row, row.base + longest) for row in rows]
    kv = whole - sum(model.layout.full_bytes(end) for model in models for end in ends)
    alone = len(rows) == 1 and not grows
    copies = len(rows) * max(model.layout.layer_bytes(longest, reserved=alone) for model in models)
    # At the end of a block, each row's copy of its states exists beside the copy before it.
    states = (len(rows) > 1) * len(rows) * sum(model.layout.state_bytes for model in models)
    fed = max(LEAST_FED, most * len(rows))
    passes = sum(model.work.bytes(fed, max(row.held + row.room for row in rows)) for model in models)
    sampled = sum(row.vectors * min(row.fed, each) for row in rows) * 4 * models[0].vocab_size
    # The end of an answer is copied into the prefix cache, after the pass: windows, states and the last tokens. Of the
    # windows only what was stored while it passed is replaced: that is behind the stored end of the prompt. A row of
    # a batch has copies of its own of windows that have turned.
    end = max(row.held for row in rows)
    end = min(end, 2 * BLOCK_TOKENS + rows[0].generated + rows[0].room) if len(rows) == 1 else end
    stored = sum(model.layout.parts.tail_bytes(BLOCK_TOKENS, end) for model in models)
    step = int(GROWN * states + (GROWN if grows else MOVED) * copies) + passes + sampled
    step += _undone(models, most, longest) * len(rows)
    return Bill(kv, max(step, int(MOVED * stored)))


def _undone(models: Rows[LoadedModel], fed: int, tokens: int) -> int:
    """
    Return the bytes of what a pass with guesses keeps, to undo it: states and windows as they were before.

    A draft model keeps them for several passes. A model without states takes single tokens out again.
    """
    if fed == 1:
        return 0
    kept = [model.layout for number, model in enumerate(models) if number or model.layout.states]
    return sum(layout.undo_bytes(tokens) for layout in kept)


def _joining(prompts: Rows[Sequence], batches: Iterable[Rows[Sequence]], width: int) -> int:
    """Return the work of prompts of one model that share passes, and then join rows that decode."""
    loaded, key = prompts[0].loaded, prompts[0].model_key
    running = [row for batch in batches if batch[0].model_key == key for row in batch]
    if len(prompts) + len(running) < 2:
        return 0
    rows = [_row(row) for row in (*prompts, *running)]
    layers = [loaded.layout.layer_bytes(row.held - row.base + row.room) for row in rows]
    joined = max(int(JOINED * sum(layers)), _decoding([loaded], rows).work)  # and what their steps take then
    if not loaded.layout.parts.resumes_anywhere:
        return joined  # windows and states share no pass
    tokens = _most_together([min(SHORT, row.held - row.done) for row in rows[: len(prompts)]], width)
    context = max(len(prompt.prompt) for prompt in prompts)
    shared = loaded.work.bytes(tokens, context) + int(MOVED * sum(layers[: len(prompts)]))
    if loaded.layout.latent:
        # A layer of each row is built as one array and expanded, however few tokens of the row are computed.
        expanded = loaded.work.bytes(PROBE, context) - loaded.work.bytes(PROBE)
        shared += sum(loaded.layout.layer_bytes(_apart(prompt.kv)) + expanded for prompt in prompts)
    return max(shared, joined)


def _most_together(lengths: Rows[int], width: int) -> int:
    """
    Return the most tokens of a pass that prompts may share, padding included.

    Args:
        lengths: What each has left.
        width: Most tokens of the pass, without padding.
    """
    ordered = sorted(lengths)
    sums = list(accumulate(ordered))
    most = 0
    for longest in set(ordered):
        others = min(bisect_right(ordered, longest) - 1, bisect_right(sums, width - longest))
        most = max(most, longest * min(1 + others, max(1, width // max(1, longest - PASS_TOKENS))))
    return most


def _by_model(prompts: Iterable[Sequence]) -> Iterable[list[Sequence]]:
    """Return the prompts that may join others, by model."""
    alike: dict[ModelKey, list[Sequence]] = {}
    for prompt in prompts:
        if prompt.draft is None:
            alike.setdefault(prompt.model_key, []).append(prompt)
    return alike.values()


def _models(sequence: Sequence) -> list[LoadedModel]:
    return [kv.loaded for kv in sequence.kvs]


def _row(sequence: Sequence, *, alone: bool = True) -> BilledRow:
    """Return what a sequence is billed for. A batch keeps the room that its rows had when they joined."""
    request, done = sequence.request, len(sequence.generated)
    masked, scored = sequence.constraint is not None, request.top_logprobs is not None
    return BilledRow(
        len(sequence.prompt) + done,
        min(request.max_tokens - done * alone, DECODE_ROOM),
        row_vectors(request.sampling, masked=masked, scored=scored),
        fed=1 + most_guesses(sequence),
        grows=request.max_tokens > DECODE_ROOM,
        # Of a draft and its model, each may read another prefix: what is apart for both is no memory of the row's.
        base=min(map(_apart, sequence.kvs)),
        generated=done,
        reused=min(kv.cached if kv.begun else kv.expected for kv in sequence.kvs),
        done=min(max(kv.held, kv.expected) for kv in sequence.kvs),
    )
