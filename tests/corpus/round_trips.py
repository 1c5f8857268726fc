"""Which templates cannot write a turn again as the model wrote it, and why; `docs/families.md` says it too."""

from __future__ import annotations

import re
from collections.abc import Mapping

TURN_ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|</s>|(?<=\})<\|call\|>|<\|end_of_text\|>|<turn\|>|<\|END_OF_TURN_TOKEN\|>|"
    r"\[e~\[|<seed:eos>|<｜end▁of▁sentence｜>|<｜tool▁outputs▁begin｜>|<\|message_sep\|>|<\|end_of_msg\|>|<SPECIAL_12>|"
    r"<\|role_end\|>|<\|observation\|>|</assistant>|<end_of_sentence>|<\|tool_response>|<\|eot\|>|<sep>|\[RESULT1|"
    r"<\|end\|>\n|<\|calls\|>|<｜hy_eos:opensource｜>"
)
"""Where a model's turn ends: the tokens that end a sequence, or the beginning of the next turn."""

_ALL = ("calls", "text", "reasoning")
_OPENED = "the prompt begins with reasoning, so a turn without any is no turn of this model"
_DROPPED = "reasoning of earlier turns is left out"
_APART = "text and calls are two turns"


def _for(kinds: tuple[str, ...], reason: str) -> Mapping[str, str]:
    return dict.fromkeys(kinds, reason)


CANNOT: Mapping[str, Mapping[str, str]] = {
    "Apriel-1.6-15b-Thinker-fixed": _for(_ALL, _DROPPED),
    "Cohere2MoE": {**_for(_ALL, _APART), "calls": _OPENED},
    "CohereForAI-c4ai-command-r-plus-tool_use": _for(_ALL, "an instruction stands at the end of each prompt"),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": _for(_ALL[1:], _APART),
    "MiniMax-M1": _for(_ALL[1:], _APART),
    "MiniMax-M2": _for(_ALL[:2], _OPENED),
    "NVIDIA-Nemotron-Nano-v2": _for(_ALL, _DROPPED),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": _for(_ALL[1:], _APART),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": _for(_ALL[1:], _APART),
    "Qwen-QwQ-32B": _for(_ALL, _DROPPED),
    "Reka-Edge": _for(_ALL, "a space is written before each text, also where the model wrote one"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": _for(_ALL, _DROPPED),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": _for(_ALL, _DROPPED),
    "deepseek-ai-DeepSeek-V3.2": _for(_ALL[:2], "the marks of empty reasoning are written otherwise later"),
    "google-gemma-4-31B-it": _for(_ALL[:2], "the marks of empty reasoning are left out later"),
    "google-gemma-4-31B-it-interleaved": _for(_ALL[:2], "the marks of empty reasoning are left out later"),
    "meta-llama-Llama-3.1-8B-Instruct": _for(_ALL[1:], _APART),
    "meta-llama-Llama-3.2-3B-Instruct": _for(_ALL[1:], _APART),
    "meta-llama-Llama-3.3-70B-Instruct": _for(_ALL[1:], _APART),
    "tencent-Hy3": _for(_ALL[2:], "the prompt lets the model reason only with a reasoning_effort"),
    "muse-glimmer": _for(_ALL, "each part is a message, whose headers are text here"),
}
"""By the name of a template, the kinds of turns that do not come back, each with the reason."""
