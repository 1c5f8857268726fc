"""Prepares an Embed request off the MLX thread: the ids of its texts, and how their hidden states become vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.cache.embedding_config import LAST_TOKEN, MEAN, EmbeddingConfig, embedding_config
from daemon.cache.identity import ModelSource
from daemon.cache.model_config import hidden_size
from daemon.engine.prompt.preparation import check_ids
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.liveness import moved
from mlx_sidecar.v1 import sidecar_pb2 as pb

POOLINGS = {pb.POOLING_LAST_TOKEN: LAST_TOKEN, pb.POOLING_MEAN: MEAN, pb.POOLING_CLS: "cls"}


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """
    Texts that were checked against their model.

    Attributes:
        source: The model.
        texts: The ids of each text, its instruction included.
        pooling: How hidden states become a vector.
        normalize: Whether vectors get length 1.
        dimensions: Numbers of a vector; None for all that the model has.
        skipped: Leading tokens of each text that are not pooled.
        shared: Leading tokens of each text that other texts may begin with; the vector does not need their states.
        message_ends: Ids that end a sequence.
    """

    source: ModelSource
    texts: list[list[int]]
    pooling: str
    normalize: bool
    dimensions: int | None
    skipped: int
    shared: list[int]
    message_ends: frozenset[int]

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.texts))


def prepare_texts(request: pb.EmbedRequest, source: ModelSource, tokenizer: Tokenizer) -> PreparedTexts:
    """
    Check an Embed request against its model, and tokenise its texts. Blocks, so it runs off the MLX thread.

    Raises:
        SidecarError: INVALID_ARGUMENT if an option or a text cannot be used with this model; CONTEXT_LENGTH_EXCEEDED if
            a text is too long; MODEL_UNSUPPORTED or MODEL_CORRUPT because of the files that describe its embeddings.
    """
    config = embedding_config(source.name, source.path, source.config, source.roots)
    pooling = POOLINGS.get(request.pooling, config.pooling)
    if not pooling:
        raise invalid(
            "pooling",
            f"is needed: {source.name} does not say how its hidden states are pooled (it has no modules.json); decoder "
            "models that are made for embeddings mostly take LAST_TOKEN",
        )
    instruction = _instruction(request, config, source.name)
    texts = _tokenise(request.texts, instruction, tokenizer, _limit(source.context_length, config.max_tokens))
    for index, ids in enumerate(texts):
        _check_ids(index, ids, source.vocab_size or tokenizer.size)
    before = _instruction_ids(instruction, tokenizer)
    skipped = 0 if config.instructed or pooling != MEAN else len(before)
    _refuse_unpooled(texts, skipped, source.name)
    return PreparedTexts(
        source=source,
        texts=texts,
        pooling=pooling,
        normalize=request.normalize if request.HasField("normalize") else config.normalize,
        dimensions=_dimensions(request, config, source),
        skipped=skipped,
        shared=_shared(texts, before, skipped, pooling),
        message_ends=tokenizer.eos_ids,
    )


def _instruction(request: pb.EmbedRequest, config: EmbeddingConfig, name: str) -> str:
    """Return the text that is put before each text; empty for none."""
    if request.HasField("prompt"):
        return request.prompt
    wanted = request.prompt_name if request.HasField("prompt_name") else config.default
    if wanted is None:
        return ""
    if wanted not in config.instructions:
        known = ", ".join(sorted(config.instructions))
        raise invalid(
            "prompt_name",
            f"is no instruction of {name}; it has {known}" if known else f"cannot be used: {name} has no instructions",
        )
    return config.instructions[wanted]


def _limit(context: int, most: int) -> int:
    """Return the most tokens of a text; 0 if nothing bounds it."""
    return min(filter(None, (context, most)), default=0)


def _tokenise(texts: Sequence[str], instruction: str, tokenizer: Tokenizer, limit: int) -> list[list[int]]:
    tokenised: list[list[int]] = []
    long: dict[int, int] = {}
    for index, text in enumerate(texts):
        ids = tokenizer.encode_prompt(instruction + text)
        moved()
        if not ids:
            raise invalid(f"texts[{index}]", "is empty; a text needs at least one token")
        if limit and len(ids) > limit:
            long[index] = len(ids)  # without its ids: those of all texts could be many times a model's context
        else:
            tokenised.append(ids)
    if long:
        raise _too_long(long, limit)
    return tokenised


def _too_long(long: Mapping[int, int], limit: int) -> SidecarError:
    """
    Return the error of texts that are too long. It names the first, and all of them for a program that cuts texts.

    Args:
        long: Tokens of each text that is too long, by its index.
        limit: Most tokens of a text.
    """
    first = min(long)
    return SidecarError(
        Reason.CONTEXT_LENGTH_EXCEEDED,
        f"texts[{first}] has {long[first]} tokens with its instruction, but the model takes {limit}; cut it",
        metadata={
            "prompt_tokens": str(long[first]),
            "max_tokens": "0",
            "context_length": str(limit),
            "long_texts": " ".join(f"{index}:{tokens}" for index, tokens in long.items()),
        },
        field=f"texts[{first}]",
    )


def _check_ids(index: int, ids: list[int], vocab: int) -> None:
    """Refuse a text with ids that the model has not: some tokenizers name more."""
    check_ids(lambda *_: f"texts[{index}]", ids, vocab)


def _refuse_unpooled(texts: list[list[int]], skipped: int, name: str) -> None:
    """Refuse a text of which nothing is pooled: all of its tokens belong to the instruction."""
    for index, ids in enumerate(texts):
        if len(ids) <= skipped:
            why = f"has no token behind its instruction, and {name} pools no token of that"
            raise invalid(f"texts[{index}]", f"{why}; give a longer text, or an empty prompt")


def _instruction_ids(instruction: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of an instruction, without a token that ends every text."""
    if not instruction:
        return []
    ids, bare = tokenizer.encode_prompt(instruction), tokenizer.encode("", special=True)
    return ids[:-1] if bare and ids[-1:] == bare[-1:] else ids


def _dimensions(request: pb.EmbedRequest, config: EmbeddingConfig, source: ModelSource) -> int | None:
    if not request.HasField("dimensions"):
        return config.dimensions
    wanted, width = request.dimensions, hidden_size(source.config)
    if config.widths and wanted not in {*config.widths, width}:
        listed = ", ".join(map(str, config.widths))
        raise invalid("dimensions", f"is {wanted}; {source.name} has {listed}")
    if wanted > width:
        raise invalid("dimensions", f"is {wanted}; a vector of {source.name} has {width} numbers")
    return wanted


def _shared(texts: list[list[int]], before: list[int], skipped: int, pooling: str) -> list[int]:
    """
    Return how many leading tokens of each text are worth sharing: its instruction, or what all texts have in common.

    The states of reused tokens are not computed, so tokens that are pooled cannot be reused.
    """
    if pooling not in (LAST_TOKEN, MEAN):
        return [0] * len(texts)
    common = _common(min(texts), max(texts)) if len(texts) > 1 else 0
    most = [max(common, _common(before, ids)) for ids in texts]
    return most if pooling == LAST_TOKEN else [min(skipped, count) for count in most]


def _common(first: list[int], second: list[int]) -> int:
    """Return how many leading tokens are equal."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
