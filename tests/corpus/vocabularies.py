"""
Tokenizers of models as their files, made from vocabularies in GGUF files and in Mistral's tekken files.

What is decoded is exact. What is encoded may be cut into other tokens than the model's own tokenizer would make: the
patterns that split texts before their encoding are not in these files. Any cut is a stream that a model may write.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Plain

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens in GGUF files: special tokens, and marks that are no special tokens."""
SPACE = "\u2581"
TEKKEN_SPECIAL = 1000
TEKKEN_SIZE = 131_072


def of_gguf(path: Path) -> dict[str, str | bytes]:
    """Return the files of the tokenizer in a GGUF file, which is byte-level, SentencePiece, Metaspace or Gemma's."""
    loaded: Any = mx.load(str(path), return_metadata=True)
    fields: dict[str, Any] = loaded[1]
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields["tokenizer.ggml.token_type"].tolist()
    match fields["tokenizer.ggml.model"]:
        case "gpt2":
            made = _byte_level(_numbered(tokens), _pairs(fields["tokenizer.ggml.merges"]))
        case "llama":
            made = _sentencepiece(tokens, fields["tokenizer.ggml.scores"].tolist())
        case "t5":
            made = _metaspace(tokens, fields["tokenizer.ggml.scores"].tolist())
        case "gemma4":
            made = _gemma(_numbered(tokens), _pairs(fields["tokenizer.ggml.merges"]))
        case other:
            raise ValueError(f"{path.name} has a vocabulary of the kind {other}")
    marks = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    made.add_tokens([AddedToken(token, special=False) for token, kind in marks if kind == USER_DEFINED])
    made.add_special_tokens([AddedToken(token, special=True) for token, kind in marks if kind == CONTROL])
    return _files(made, tokens[int(fields["tokenizer.ggml.eos_token_id"].item())])


def of_tekken(path: Path) -> dict[str, str | bytes]:
    """Return the files of a tekken tokenizer. Special tokens come first; only those that tests need have names."""
    content = json.loads(path.read_text())
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 9: "[TOOL_CALLS]", 32: "[ARGS]"}
    special = [names.get(number, f"<SPECIAL_{number}>") for number in range(TEKKEN_SPECIAL)]
    table = _byte_characters()
    vocabulary = {token: number for number, token in enumerate(special)}
    for entry in content["vocab"][: TEKKEN_SIZE - TEKKEN_SPECIAL]:
        token = "".join(table[byte] for byte in base64.b64decode(entry["token_bytes"]))
        vocabulary[token] = TEKKEN_SPECIAL + entry["rank"]
    made = _byte_level(vocabulary, [])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(content["config"]["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    return _files(made, "</s>")


def of_sentencepiece(path: Path) -> dict[str, str | bytes]:
    """Return the files of a SentencePiece model. The libraries make the rest from it."""
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = json.dumps({"tokenizer_class": "LlamaTokenizer", **ends})
    return {"tokenizer.model": path.read_bytes(), "tokenizer_config.json": config}


def _files(made: Any, eos: str) -> dict[str, str | bytes]:
    config = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos})
    return {"tokenizer.json": str(made.to_str()), "tokenizer_config.json": config}


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    """Return merges as pairs. A token may begin with a space, so the space that divides is the last inner one."""
    return [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return a tokenizer whose tokens are bytes, written as characters. Without merges it takes the longest words."""
    made = Plain(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=not merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(tokens: list[str], scores: list[float]) -> Any:
    """Return a tokenizer with byte fallback that puts a space before each text, and takes it away again."""
    made = Plain(models.Unigram(list(zip(tokens, scores, strict=True)), unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    spaces = decoders.Replace(SPACE, " ")
    made.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _metaspace(tokens: list[str], scores: list[float]) -> Any:
    """Return a tokenizer without byte fallback, where a word's first token begins with a space."""
    made = Plain(models.Unigram(list(zip(tokens, scores, strict=True)), unk_id=tokens.index("<unk>")))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def _gemma(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Return a tokenizer with byte fallback that adds no space before a text."""
    made = Plain(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _byte_characters() -> dict[int, str]:
    """Return the characters that stand for bytes in byte-level vocabularies: printable ones for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
