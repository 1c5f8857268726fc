"""Special tokens: every place that names the end of an answer counts, and unknown marks are text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.prompt.special_tokens import eos_ids, unwritten_ids
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded, marked_model
from tests.unit.engine.harness import Answer, Harness, generate

PROMPT = "The code of the blue box is"
WORDS = ["word", "</s>", "<|im_end|>", "<|im_start|>", "<|end|>", "<|channel|>", "[THINK]", "<pad>", "<|eot_id|>"]
PLAIN, EOS, IM_END, IM_START, END, CHANNEL, THINK, PAD, EOT = range(len(WORDS))


def tokenizer_of(*added: int, template: Any = None, **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the words of these ids; all but the plain one are special."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({WORDS[id_]: id_ for id_ in (PLAIN, *added)}, "word"))
    tokenizer.add_special_tokens([WORDS[id_] for id_ in added])
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    loaded.chat_template = template
    return loaded


def checkpoint(folder: Path, **files: dict[str, Any]) -> Path:
    """Write JSON files, which are named without their ending."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"eos_token_id": EOS}},
        {"config": {"eos_token_id": [EOS]}},
        {"config": {"text_config": {"eos_token_id": EOS}}},
        {"config": {"llm_config": {"eos_token_id": [EOS]}}},
        {"generation_config": {"eos_token_id": EOS}, "config": {}},
        {"generation_config": {"eos_token_id": [EOS, None, True, -1, "x"]}},
        {"tokenizer_config": {"eos_token": "</s>"}},
        {"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False}}},
        {"special_tokens_map": {"eos_token": {"content": "</s>"}}},
    ],
)
def test_each_place_names_the_end(tmp_path: Path, files: dict[str, Any]) -> None:
    """One place is enough."""
    assert eos_ids(checkpoint(tmp_path, **files), tokenizer_of(EOS)) == {EOS}


def test_ends_of_all_places_are_joined(tmp_path: Path) -> None:
    """Most tools take the first place alone, and run on where another one has the end of a turn."""
    path = checkpoint(
        tmp_path,
        generation_config={"eos_token_id": EOS},
        config={"eos_token_id": [IM_END], "text_config": {"eos_token_id": EOT}},
        tokenizer_config={"eos_token": "<pad>"},
    )
    assert eos_ids(path, tokenizer_of(EOS, IM_END, EOT, PAD)) == {EOS, IM_END, EOT, PAD}


def test_stale_id_of_a_usual_word_ends_nothing(tmp_path: Path) -> None:
    """A configuration that other files correct may name an id that is a word of this vocabulary."""
    path = checkpoint(tmp_path, generation_config={"eos_token_id": EOS}, config={"eos_token_id": PLAIN})
    assert eos_ids(path, tokenizer_of(EOS)) == {EOS}
    stale = {"text_config": {"eos_token_id": PLAIN}}
    assert eos_ids(checkpoint(tmp_path, generation_config={}, config=stale), tokenizer_of(EOS)) == {PLAIN}
    path = checkpoint(tmp_path, tokenizer_config={"eos_token": "</s>"})
    assert eos_ids(path, tokenizer_of(EOS)) == {EOS}


@pytest.mark.parametrize("template", ["{{ '<|im_end|>' }}", {"default": "", "tool_use": "<|im_end|>"}])
def test_turn_end_of_the_template_is_an_end(tmp_path: Path, template: Any) -> None:
    """As in models that kept the end of their base model."""
    path = checkpoint(tmp_path, config={"eos_token_id": EOS})
    assert eos_ids(path, tokenizer_of(EOS, IM_END, template=template)) == {EOS, IM_END}


def test_turn_end_of_the_vocabulary_alone_is_none(tmp_path: Path) -> None:
    """Many vocabularies have marks that their model never learnt to end a turn with."""
    path = checkpoint(tmp_path, config={"eos_token_id": EOS})
    assert eos_ids(path, tokenizer_of(EOS, IM_END, EOT, template="{{ '[THINK]' }}")) == {EOS}


def test_end_of_a_message_within_an_answer_is_none(tmp_path: Path) -> None:
    """gpt-oss ends each of its messages with the mark that ends a turn of Phi."""
    path = checkpoint(tmp_path, config={"eos_token_id": EOS})
    assert eos_ids(path, tokenizer_of(EOS, END, template="<|end|>")) == {EOS, END}
    assert eos_ids(path, tokenizer_of(EOS, END, CHANNEL, template="<|end|>")) == {EOS}


def test_checkpoint_without_an_end_has_none(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    assert eos_ids(checkpoint(tmp_path, config={"text_config": 3, "eos_token_id": None}), tokenizer_of(EOS)) == set()


def test_marks_that_frame_turns_are_no_text() -> None:
    tokenizer = tokenizer_of(EOS, IM_START, PAD, THINK, pad_token="<pad>")
    assert unwritten_ids(tokenizer, {EOS}) == {EOS, IM_START, PAD}


def write(harness: Harness, path: Path, ids: list[int], **fields: Any) -> Answer:
    """Have a model answer with some ids; 0 stands for a word."""
    form = pb.ResponseFormat(grammar="start: " + " ".join(f"<[{id_}]>" if id_ > 700 else '"word"' for id_ in ids))
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hello")])
    return harness.run(pb.GenerateRequest(model=str(path), chat=chat, max_tokens=50, response_format=form, **fields))


def test_unknown_marks_are_text(harness: Harness, tmp_path: Path) -> None:
    """They are special tokens, and marks of no notation."""
    path = marked_model(tmp_path, {"[THUNK]": True, "[/THUNK]": True})
    assert write(harness, path, [737, 0, 738, 0]).text == "[THUNK]word[/THUNK]word"


def test_python_tag_is_text_without_a_notation(harness: Harness, tmp_path: Path) -> None:
    path = marked_model(tmp_path, {"<|python_mark|>": True})
    assert write(harness, path, [737, 0]).text == "<|python_mark|>word"


def test_eos_in_text_config(harness: Harness, tmp_path: Path) -> None:
    """A model with images has the configuration of its language model apart. No other file names the end."""
    path = copy_of_embedded(tmp_path, text_config={"eos_token_id": 2}, eos_token_id=None)
    (path / "chat_template.jinja").unlink()
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    answer = harness.run(generate(PROMPT, model=str(path), sampling=pb.Sampling(logit_bias={2: 100})))
    assert (answer.text, answer.finished.reason) == ("", pb.FINISH_REASON_STOP)
    assert answer.finished.usage.completion_tokens == 1


def test_special_tokens_map_ends_an_answer(harness: Harness, tmp_path: Path) -> None:
    """The tokenizer's own configuration may lack the end."""
    path = tmp_path / "model"
    shutil.copytree(EMBEDDED_PATH, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    answer = harness.run(generate(PROMPT))
    word = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    token = next(token for token, id_ in word.items() if id_ == answer.ids[0])
    (path / "special_tokens_map.json").write_text(json.dumps({"eos_token": token}))
    assert harness.run(generate(PROMPT, model=str(path))).finished.reason == pb.FINISH_REASON_STOP
