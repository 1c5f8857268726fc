"""
The bill of running requests: bytes that they take at their peak, beside weights and the prefix cache.

KV lives as long as its request, so each request pays its own. A prefix that several requests read is billed once.
What a pass, a join or a growing layer takes is free again before the next one begins. So the largest of them is
billed once, for all requests together:

    bill = sum of KV, with padding  +  the largest of: a prefill pass, a pass over short prompts, a decode step, a join

A prompt that waits until another one has computed what both begin with holds nothing before that. So the passes of the
other are billed up to there without the KV of those that wait for it, and behind it with all of them.

A request is admitted with the smallest pass that is worth computing. Wider ones take what is free at the moment
(`widest`), and are made narrower if that is less. So a long prompt starts where its KV fits, and computes in small
pieces, rather than being refused for the workspace of pieces that it does not need.

Copies follow from the code: a layer of all rows is copied at a time, and the layers before it are free again
(`Batch.join`, `Batch.settle`, and mlx-lm's caches when they grow). docs/memory-ledger.md compares bills with peaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Rows
from itertools import chain

from daemon.cache.identity import ModelKey
from daemon.cache.mlx.loader import LoadedModel
from daemon.engine.execution.join_bills import Part, joining_bill
from daemon.engine.execution.row_bills import (
    JOINED,
    LEAST_WIDTH,
    Bill,
    BilledRow,
    decoding_bill,
    prompt_bill,
)
from daemon.engine.execution.sampling import row_vectors
from daemon.engine.execution.sequence import Sequence
from daemon.engine.execution.sequence_kv import SequenceKV
from daemon.engine.execution.speculation import most_guesses
from daemon.engine.memory.memory_budget import DECODE_ROOM, SCORED_TOKENS, scoring_need
from daemon.engine.scheduling.policy import MAX_CHUNK
from daemon.kv.mlx.shared_prefix import SharedPrefix


def bill(prefilling: Iterable[Sequence], groups: Iterable[Rows[Sequence]], width: int = LEAST_WIDTH) -> Bill:
    """
    Return the bill of running sequences.

    Args:
        prefilling: Sequences with a prompt to compute.
        groups: Those that decode, by the batch that they share.
        width: Tokens of a pass.
    """
    prompts, batches = list(prefilling), list(groups)
    decoding = [list(map(_row, rows)) for rows in batches]
    bills = _prompts(prompts, width)
    parts: list[tuple[Rows[Sequence], Part]] = [
        ([one], Part([_row(one)] * one.rows, own.kv, prompt=True)) for one, own in zip(prompts, bills, strict=True)
    ]
    for rows, billed in zip(batches, decoding, strict=True):
        bills.append(decoding_bill(_models(rows[0]), billed))
        parts.append((rows, Part(billed, bills[-1].kv)))
    bills += _joins(parts, width)
    read = {prefix.memory for sequence in (*prompts, *chain(*batches)) for prefix in _read(sequence)}
    kv = sum(part.kv for part in bills) + sum(memory.nbytes for memory in read)
    kv += sum(_of_head(sequence) for sequence in (*prompts, *chain(*batches)))
    return Bill(kv, max([0, *(part.work for part in bills)]))


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


def widest_draft(sequence: Sequence, width: int) -> int:
    """
    Return the most tokens of a pass of a draft model, so that a sequence takes what it is billed.

    The draft model computes first, and has what is billed for the larger of both models' passes.

    Args:
        sequence: The sequence, with a draft model.
        width: Tokens of the passes that it is billed for.
    """
    (model, draft), row, wanted = _models(sequence), _row(sequence), MAX_CHUNK
    free = prompt_bill([model, draft], row, width=width).total - prompt_bill([model], row, width=width).kv
    while wanted > width and prompt_bill([draft], row, width=wanted).total > free:
        wanted = max(width, wanted * 3 // 4)
    return wanted


def _prompts(prompts: Rows[Sequence], width: int) -> list[Bill]:
    """Return the bill of each prompt. Those that wait for it hold nothing beside its passes up to where they part."""
    bills = [_prompt(prompt, width) for prompt in prompts]
    stages = list(bills)
    for index, prompt in enumerate(prompts):
        waits = [(_awaits(other, prompt), own.kv) for other, own in zip(prompts, bills, strict=True)]
        if any(stop for stop, _ in waits):
            begin = _row(prompt).done
            works = (
                _prompt(prompt, width, done).work - sum(kv for stop, kv in waits if stop > done)
                for done in {begin, *(stop for stop, _ in waits if stop > begin)}
            )
            stages[index] = Bill(bills[index].kv, max(works))
    return stages


def _awaits(prompt: Sequence, other: Sequence) -> int:
    """Return how many tokens another sequence has to have computed before a prompt begins; 0 if it may begin now."""
    if len(prompt.kvs) != len(other.kvs):
        return 0
    pairs = [(kv, before, kv.outlook.alike.get(before, 0)) for kv, before in zip(prompt.kvs, other.kvs, strict=True)]
    return min(stop if stop > max(kv.leased, before.held) else 0 for kv, before, stop in pairs)


def _prompt(sequence: Sequence, width: int, done: int = 0) -> Bill:
    """Return the bill of a prompt that has computed so many tokens, or those that it has if they are more."""
    scored = sequence.request.prompt_logprobs is not None
    width = min(width, SCORED_TOKENS) if scored else width
    models, rows, row = _models(sequence), sequence.rows, _row(sequence)
    row = row._replace(done=max(row.done, done))
    own = prompt_bill(models, row, rows, width)
    # A prompt that has not begun shall hold no wide chunk yet when another one is computed.
    kv = own.kv if sequence.kv.cache is not None else prompt_bill(models, row, rows).kv
    work = own.total - kv + scoring_need(sequence.loaded.vocab_size) * scored
    # A pass behind a shared prefix builds a layer of prefix and tail as one array, and MLX prepares others.
    work += max(int(JOINED * kv.loaded.layout.layer_bytes(_apart(kv))) if _apart(kv) else 0 for kv in sequence.kvs)
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
    return max(kv.base, kv.outlook.tokens)


def _joins(parts: Iterable[tuple[Rows[Sequence], Part]], width: int) -> Iterator[Bill]:
    """
    Yield what sequences of a model take because they share passes, or come to share a batch.

    Rows share a batch if they read the same prefix, or none. The sequence that others are to read is cut in two then.
    Those with a draft model share nothing.
    """
    by_model: dict[ModelKey, list[tuple[Rows[Sequence], Part]]] = {}
    for sequences, part in parts:
        if sequences[0].draft is None:
            by_model.setdefault(sequences[0].model_key, []).append((sequences, part))
    for alike in by_model.values():
        cuts: dict[SequenceKV, int] = {}
        for before, stop in chain(*(sequences[0].kv.outlook.alike.items() for sequences, part in alike if part.prompt)):
            cuts[before] = min(stop, cuts.get(before, stop))
        loaded, readers = alike[0][0][0].loaded, [_reading(sequences, part, cuts) for sequences, part in alike]
        yield joining_bill(loaded, [part for _, part in alike if not part.rows[0].base], width)
        yield joining_bill(loaded, [part for part in readers if part.rows], width)


def _reading(sequences: Rows[Sequence], part: Part, cuts: Mapping[SequenceKV, int]) -> Part:
    """Return those rows that read a prefix together with others once some are cut."""
    each = len(part.rows) // len(sequences)
    bases = [row.base or cuts.get(sequences[index // each].kv, 0) for index, row in enumerate(part.rows)]
    rows = [row._replace(base=base) for row, base in zip(part.rows, bases, strict=True) if base]
    return Part(rows, part.kv * len(rows) // len(part.rows), part.prompt)


def _models(sequence: Sequence) -> list[LoadedModel]:
    return [kv.loaded for kv in sequence.kvs]


def _row(sequence: Sequence) -> BilledRow:
    """Return what a sequence is billed for."""
    request, done = sequence.request, len(sequence.generated)
    masked, scored = sequence.constraint is not None, request.top_logprobs is not None
    return BilledRow(
        len(sequence.prompt) + done,
        min(request.max_tokens - done, DECODE_ROOM),
        row_vectors(request.sampling, masked=masked, scored=scored),
        fed=1 + most_guesses(sequence),
        grows=request.max_tokens > DECODE_ROOM,
        # Of a draft and its model, each may read another prefix: what is apart for both is no memory of the row's.
        base=min(map(_apart, sequence.kvs)),
        generated=done,
        reused=min(kv.leased if kv.begun else max(kv.leased, kv.outlook.tokens) for kv in sequence.kvs),
        done=min(max(kv.held, kv.leased, kv.outlook.tokens) for kv in sequence.kvs),
    )
