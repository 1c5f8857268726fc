"""Architecture and start values of the embedded model: mlx-lm's own Llama class."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from tools.embedded.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, END_OF_TURN

CHECKPOINT = Path(__file__).parents[2] / "daemon" / "embedded"

WIDTH = 128
LAYERS = 3
HEADS = 4
HEAD_SIZE = WIDTH // HEADS
ROPE_BASE = 100_000.0

EMBEDDING_SCALE = 0.1
LOOK_BACK = 3  # how many heads of the first layer start by attending 1, 2, 3 tokens back
SHARPNESS = 8.0  # score that one rotary frequency adds at the attended distance
FREQUENCIES = 8  # how many of the fastest rotary frequencies mark that distance
MATCHING_GAIN = 2.5
COPYING_GAIN = 2.0


def config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json for a model with the vocabulary of `tokenizer`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "intermediate_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_SIZE,
        "attention_bias": True,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": ROPE_BASE,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": True,
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": tokenizer.token_to_id(END_OF_TURN),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "torch_dtype": "float32",
    }


def build(settings: dict[str, Any]) -> Model:
    """Return a model with the start values that make recall learnable in minutes.

    Recall needs two circuits: a position gathers the words just before it, and a question matches
    its own gathered words with those of the place that holds the code. From random values, the first
    circuit gives no gain before the second exists, so that neither had appeared after 400 steps of drills.
    Therefore some heads of layer 0 start as look-back heads, and in later layers keys start equal to
    queries, so that equal content attracts, and heads copy. Everything remains trainable.
    """
    model = Model(ModelArgs.from_dict(settings))
    embedding = model.model.embed_tokens
    embedding.weight = EMBEDDING_SCALE * mx.random.normal(embedding.weight.shape)
    _start_look_back(model.layers[0].self_attn)
    for layer in model.layers[1:]:
        _start_matching(layer.self_attn)
    return model


def _start_look_back(attention: Any) -> None:
    """Make head h < LOOK_BACK attend h + 1 tokens back, all with one shared value map."""
    rates = ROPE_BASE ** (-mx.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    size = (SHARPNESS * HEAD_SIZE**0.5) ** 0.5
    sizes = mx.where(mx.arange(HEAD_SIZE // 2) < FREQUENCIES, size, 0.0)
    rest = mx.zeros(HEAD_SIZE * (HEADS - LOOK_BACK))
    keys = [mx.concatenate([sizes, mx.zeros_like(sizes)])] * LOOK_BACK
    turns = [-(head + 1) * rates for head in range(LOOK_BACK)]
    queries = [mx.concatenate([sizes * mx.cos(turn), sizes * mx.sin(turn)]) for turn in turns]
    attention.k_proj.bias = mx.concatenate([*keys, rest])
    attention.q_proj.bias = mx.concatenate([*queries, rest])
    value, out, end = attention.v_proj.weight, attention.o_proj.weight, LOOK_BACK * HEAD_SIZE
    attention.v_proj.weight = mx.concatenate([value[:HEAD_SIZE]] * LOOK_BACK + [value[end:]])
    attention.o_proj.weight = mx.concatenate([out[:, :HEAD_SIZE]] * LOOK_BACK + [out[:, end:]], axis=1)


def _start_matching(attention: Any) -> None:
    """Make keys equal to queries, and let a head write what it reads: output maps mirror value maps."""
    attention.q_proj.weight = MATCHING_GAIN * attention.q_proj.weight
    attention.k_proj.weight = attention.q_proj.weight
    attention.o_proj.weight = COPYING_GAIN * attention.v_proj.weight.T
