"""`ModelInfo`, the description of a model; a module of its own, so that `stats()` imports no other results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DefaultSampling:
    """
    The sampling options that a model recommends, which `model_defaults` takes; None where it recommends nothing.

    Attributes:
        temperature: 0 (greedy) to 100.
        top_p: Keep the most likely tokens whose probabilities sum to this.
        top_k: Keep this many of the most likely tokens.
        min_p: Keep tokens at least this likely relative to the most likely one.
        repetition_penalty: Divides the logits of tokens that occurred.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """
    A model.

    Attributes:
        model: The name under which it was requested.
        fingerprint: Digest of its content; equal fingerprints mean interchangeable models.
        architecture: mlx-lm architecture, such as "qwen3".
        size_bytes: Bytes of its weights; an estimate before a load.
        num_layers: Number of transformer layers.
        context_length: Longest prompt plus completion, in tokens, as chosen or as the model's configuration says; 0
            when it does not say.
        vocab_size: Number of token ids.
        kv_bytes_per_token: Bytes of KV cache that one more token needs; an estimate before a load.
        prefix_reuse: "blocks", "checkpoints", "none", or "unspecified" while it is not known.
        outcome: "hit", "loaded", "uncached" or "estimated"; "unspecified" in `Stats`.
        load_time: Seconds that the load took, download and warm-up included; 0 for a hit.
        evicted: Models that were evicted to make room.
        warmup_time: Seconds of `load_time` that went into the warm-up.
        revision: Its commit on the Hub; empty for directories and "embedded".
        warnings: Limits of this model, such as a failed self-test.
        default_sampling: The sampling options that it recommends.
        max_request_tokens: Most tokens of prompt plus completion that fit in memory, and in the context; 0 before a
            load, in `Stats`, and if no request fits.
    """

    model: str
    fingerprint: str
    architecture: str
    size_bytes: int
    num_layers: int
    context_length: int
    vocab_size: int
    kv_bytes_per_token: int
    prefix_reuse: str
    outcome: str
    load_time: float | None
    evicted: tuple[str, ...]
    warmup_time: float | None
    revision: str = ""
    warnings: tuple[str, ...] = ()
    default_sampling: DefaultSampling = DefaultSampling()
    max_request_tokens: int = 0
