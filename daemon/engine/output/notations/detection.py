"""Finds out from a chat template and a vocabulary in which notation a model writes tool calls."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from itertools import chain
from typing import Any

from daemon.engine.output.notations.apertus import APERTUS
from daemon.engine.output.notations.command_r import COMMAND_R
from daemon.engine.output.notations.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from daemon.engine.output.notations.foreign import foreign
from daemon.engine.output.notations.functionary import FUNCTIONARY_31, FUNCTIONARY_32
from daemon.engine.output.notations.gemma import FUNCTION_GEMMA, GEMMA_4
from daemon.engine.output.notations.glm import GLM, LONGCAT
from daemon.engine.output.notations.harmony import HARMONY
from daemon.engine.output.notations.hunyuan import HUNYUAN
from daemon.engine.output.notations.hy3 import HY3
from daemon.engine.output.notations.invoke import DSML, DSML_V4, MINIMAX_M2, MUSE
from daemon.engine.output.notations.json_marked import (
    APRIEL,
    COMMAND_A,
    FUNCTOOLS,
    GIGACHAT,
    GRANITE,
    HERMES,
    NEMOTRON,
    PHI,
    TOOL_CALLS,
)
from daemon.engine.output.notations.kimi import KIMI_K2
from daemon.engine.output.notations.llama import LLAMA_3, PYTHON_START, python_marked
from daemon.engine.output.notations.minicpm import MINICPM_5
from daemon.engine.output.notations.minimax_m3 import MINIMAX_M3
from daemon.engine.output.notations.mistral import ARGUMENTS, MISTRAL, MISTRAL_LIST
from daemon.engine.output.notations.notation import Notation
from daemon.engine.output.notations.pythonic import LFM2, OLMO_3, PYTHONIC
from daemon.engine.output.notations.qwen_xml import QWEN_XML, SEED

HARMONY_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|constrain|>", "<|call|>")


@dataclass(frozen=True, slots=True)
class _Rule:
    """A notation, and texts of a template that all have to be there for it."""

    notation: Notation
    texts: tuple[str, ...]


_RULES = (
    _Rule(MINIMAX_M3, ("]<]minimax[>[",)),
    _Rule(MINIMAX_M2, ("<minimax:tool_call>",)),
    _Rule(DSML_V4, ("DSML｜", "tool_calls>")),
    _Rule(DSML, ("DSML｜",)),
    _Rule(GEMMA_4, ("<|tool_call>", "<tool_call|>")),
    _Rule(FUNCTION_GEMMA, ("<start_function_call>",)),
    _Rule(LONGCAT, ("<longcat_tool_call>",)),
    _Rule(SEED, ("<seed:tool_call>",)),
    _Rule(HY3, ("<tool_calls{}>", "opensource")),
    _Rule(GLM, ("<arg_key>",)),
    _Rule(LFM2, ("<|tool_list_start|>",)),
    _Rule(LFM2, ("<|tool_call_start|>",)),
    _Rule(QWEN_XML, ("<tool_call>\\n<function=",)),
    _Rule(QWEN_XML, ("<tool_call>\n<function=",)),
    _Rule(QWEN_XML, ("<function=", "<parameter=")),
    _Rule(KIMI_K2, ("<|tool_calls_section_begin|>",)),
    _Rule(DEEPSEEK_V3, ("<｜tool▁calls▁begin｜>", "```json")),
    _Rule(DEEPSEEK_V31, ("<｜tool▁calls▁begin｜>",)),
    _Rule(APERTUS, ("<|tools_prefix|>",)),
    _Rule(COMMAND_A, ("<|START_ACTION|>",)),
    _Rule(MINICPM_5, ('<function name="', '<param name="')),
    _Rule(MUSE, ("<atem:function_calls>",)),
    _Rule(MISTRAL, ("[TOOL_CALLS]",)),
    _Rule(GIGACHAT, ("<|function_call|>", "<|role_sep|>")),
    _Rule(NEMOTRON, ("<TOOLCALL>",)),
    _Rule(APRIEL, ("<tool_calls>[",)),
    _Rule(HUNYUAN, ("<tool_calls><tool_call>", "```json")),
    _Rule(TOOL_CALLS, ("<tool_calls>",)),
    _Rule(HERMES, ("<tool_call>",)),
    _Rule(OLMO_3, ("<function_calls>", "<functions>")),
    _Rule(FUNCTIONARY_32, (">>>all",)),
    _Rule(FUNCTIONARY_31, ("<function=", "</function>")),
    _Rule(COMMAND_R, ("Action:", "```json", "tool_name")),
    _Rule(FUNCTOOLS, ("functools[",)),
    _Rule(PHI, ("<|tool_call|>", "<|/tool_call|>")),
    _Rule(GRANITE, ("<|tool_call|>",)),
    _Rule(LLAMA_3, ("<|python_tag|>",)),
    _Rule(LLAMA_3, ('"parameters": dictionary of argument name and its value',)),
    _Rule(PYTHONIC, ("[func_name1(params_name1=params_value1",)),
)
"""The first rule decides of which the template has all texts."""

_WORDS = (
    (HARMONY, HARMONY_MARKS),
    (DSML, ("｜DSML｜",)),
    (LFM2, ("<|tool_call_start|>", "<|tool_call_end|>")),
    (PHI, ("<|tool_call|>", "<|/tool_call|>")),
    (DEEPSEEK_V3, ("<｜tool▁calls▁begin｜>",)),
)
"""Notations of vocabularies that have all these tokens, for templates that do not show their calls."""


def notation_of(template: str, words: Container[str], wrapper: Any) -> Notation | None:
    """
    Return the notation of a model; None if it is not known how it writes calls.

    Args:
        template: The chat template that is used with tools; empty if there is none.
        words: The vocabulary.
        wrapper: The tokenizer as mlx-lm wraps it, which may know a parser for another notation.
    """
    if all(word in words for word in HARMONY_MARKS):
        return HARMONY
    by_template = (rule.notation for rule in _RULES if all(text in template for text in rule.texts))
    by_words = (known for known, marks in _WORDS if all(mark in words for mark in marks))
    found = next(chain(by_template, by_words), None)
    if found is None and wrapper.tool_parser is not None:
        return foreign(wrapper.tool_call_start, wrapper.tool_call_end, wrapper.tool_parser)
    if found is MISTRAL and ARGUMENTS not in words:
        return MISTRAL_LIST
    if found in (LLAMA_3, PYTHONIC) and PYTHON_START in words:
        return python_marked(found)
    return found
