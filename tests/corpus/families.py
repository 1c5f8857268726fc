"""What is known of the templates in the corpus: which conversations they refuse, and what they drop from others."""

from __future__ import annotations

from pathlib import Path

SMALL = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
"""The templates in this repository."""

TEMPLATES = (
    "Apertus-8B-Instruct",
    "Apriel-1.6-15b-Thinker-fixed",
    "Bielik-11B-v3.0-Instruct",
    "ByteDance-Seed-OSS",
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GLM-4.6",
    "GLM-4.7-Flash",
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "HuggingFaceTB-SmolLM3-3B",
    "Kimi-K2-Instruct",
    "Kimi-K2-Thinking",
    "Kimi-K3",
    "LFM2-8B-A1B",
    "LFM2.5-8B-A1B",
    "LFM2.5-Instruct",
    "MiMo-VL",
    "MiniMax-M1",
    "MiniMax-M2",
    "MiniMax-M3",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "NVIDIA-Nemotron-Nano-v2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-QwQ-32B",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "Qwen3.5-4B",
    "Reka-Edge",
    "Spark2.5",
    "StepFun3.5-Flash",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "deepseek-ai-DeepSeek-V3.2",
    "deepseek-ai-DeepSeek-V4",
    "deepseek-ai-DeepSeek-V4-Flash-0731",
    "fireworks-ai-llama-3-firefunction-v2",
    "google-gemma-2-2b-it",
    "google-gemma-4-31B-it",
    "google-gemma-4-31B-it-interleaved",
    "ibm-granite-granite-3.3-2B-Instruct",
    "ibm-granite-granite-4.0",
    "ibm-granite-granite-4.1",
    "inclusionai-ling-3.0-flash",
    "llama-cpp-deepseek-r1",
    "llama-cpp-rwkv-world",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "moonshotai-Kimi-K2",
    "muse-glimmer",
    "openai-gpt-oss-120b",
    "openbmb-MiniCPM5-1B",
    "poolside-Laguna-S-2.1",
    "poolside-Laguna-XS-2.1",
    "poolside-Laguna-XS.2",
    "tencent-Hy3",
    "unsloth-Apriel-1.5",
    "unsloth-mistral-Devstral-Small-2507",
    "upstage-Solar-Open-100B",
)
"""Names of the files in LLAMA_CPP, without their suffix. `docs/families.md` names them too."""

CALLS = ("call", "answer", "two calls", "reasoning")
PLAIN = ("system", "thinking on", "thinking off", "unicode", "long", "empty")

REFUSES = {
    "CohereForAI-c4ai-command-r-plus-tool_use": PLAIN,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": PLAIN,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": PLAIN,
    "Kimi-K2-Instruct": CALLS,
    "Kimi-K2-Thinking": CALLS,
    "fireworks-ai-llama-3-firefunction-v2": (*PLAIN, *CALLS, "tools"),
    "google-gemma-2-2b-it": ("system", "tools", *CALLS),
    "llama-cpp-deepseek-r1": ("tools", *CALLS),
    "meetkai-functionary-medium-v3.2": CALLS,
    "meta-llama-Llama-3.1-8B-Instruct": ("two calls",),
    "meta-llama-Llama-3.2-3B-Instruct": ("two calls",),
    "meta-llama-Llama-3.3-70B-Instruct": ("two calls",),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("empty",),
    "gemma3": CALLS,
    "deepseek_v3": (),
}
"""
Conversations that a template may refuse, by its name.

The tool templates of Hermes and Command R+ need tools: each is one of several templates of its checkpoint. Kimi K2
appends to a list, which the sandbox forbids. Firefunction wants its tools as text. Gemma 2 has no system turn, Gemma 3
no calls. Functionary and the template of llama.cpp for R1 want the arguments of calls as text.
"""

THINKS_WITHOUT_SWITCH = ("thinking on", "thinking off")
"""Refused by the engine where the template reads no switch."""

TEXT, CALL, TOOLS, RESULTS = "BEFORE", "Köln", ("get_weather", "Tells the weather."), ("RESULT1", "RESULT2")

LOSES: dict[str, tuple[str, ...]] = {
    "Cohere2MoE": (TEXT,),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": (TEXT,),
    "HuggingFaceTB-SmolLM3-3B": (CALL, *TOOLS),
    "LFM2-8B-A1B": (CALL,),
    "LFM2.5-Instruct": (CALL,),
    "MiniMax-M1": (TEXT,),
    "Mistral-Small-3.2-24B-Instruct-2506": (TEXT,),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": (TEXT,),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": (TEXT,),
    "Reka-Edge": (CALL,),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (CALL, *TOOLS),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": TOOLS,
    "deepseek-ai-DeepSeek-V3.1": TOOLS,
    "ibm-granite-granite-3.3-2B-Instruct": (CALL,),
    "llama-cpp-rwkv-world": (CALL, *TOOLS, *RESULTS),
    "microsoft-Phi-3.5-mini-instruct": (CALL, *TOOLS, *RESULTS),
    "mistralai-Mistral-Nemo-Instruct-2407": (TEXT,),
    "muse-glimmer": (TEXT,),
    "upstage-Solar-Open-100B": (TEXT,),
    "deepseek_v3": (CALL, *TOOLS),
    "llama3_1": (CALL, *TOOLS),
    "gemma3": TOOLS,
    "google-gemma-2-2b-it": TOOLS,
}
"""
Parts of conversations that a template may drop, by its name.

Reka writes calls with characters above ASCII escaped, so the city of the call is there in another spelling.
"""

NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct", "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct",
    "Kimi-K2-Instruct", "Kimi-K2-Thinking", "fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it",
    "llama-cpp-deepseek-r1",
    "GigaChat3-10B-A1.8B", "upstage-Solar-Open-100B",
}  # fmt: skip
"""Templates that write no calls, those that refuse calls, and those whose notation is not known."""

ONE_CALL = {
    "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct",
    "openai-gpt-oss-120b", "muse-glimmer", "GigaChat3.1-10B-A1.8B",
}  # fmt: skip
"""Templates that write one call for a turn, or two messages."""

NO_TEXT = {
    "Cohere2MoE", "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "MiniMax-M1",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
}  # fmt: skip
"""Templates that have no room for text beside calls, so that both become two turns."""

REASONS = (
    "Bielik-11B-v3.0-Instruct",
    "ByteDance-Seed-OSS",
    "Cohere2MoE",
    "GLM-4.6",
    "GLM-4.7-Flash",
    "Kimi-K3",
    "LFM2.5-8B-A1B",
    "MiniMax-M2",
    "MiniMax-M3",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "Qwen-Qwen3-0.6B",
    "Qwen3.5-4B",
    "Spark2.5",
    "StepFun3.5-Flash",
    "inclusionai-ling-3.0-flash",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "openbmb-MiniCPM5-1B",
    "poolside-Laguna-S-2.1",
)
"""Templates that write the reasoning of a turn with calls, after a prompt that lets the model reason."""


RAW = (
    "</parameter>",
    "</arg_value>",
    "<escape>",
    '<|"|>',
    "<|end|>",
    "]<",
    "<think>",
    "<tool_call>",
    "</tool_call>",
    "'",
)
"""Texts of arguments that end a value in some notation, or a turn."""
BARE_KEYS = {"LFM2.5-8B-A1B", "google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved", "MiniMax-M3"}
"""Templates whose notation has names of arguments without quotes."""
UNESCAPED = {"LFM2.5-8B-A1B"}
"""Templates that write a text between quotes without an escape, so that a backslash in it is another text."""
NO_NULL = {
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
}
"""Templates that recurse without end where the schema of an argument has a type that they do not know, as null."""
SORTED = {"google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"}
"""Templates that sort the arguments of a call, as their models write them."""
_IDS = "an id comes behind the arguments, of which the model was told nothing"
_LISTS = "lists are written as Python writes them"
_NO_MARK = "a call that begins the answer has no mark"
OTHER_GRAMMAR = {
    "Apriel-1.6-15b-Thinker-fixed": _IDS,
    "ByteDance-Seed-OSS": _LISTS,
    "CohereForAI-c4ai-command-r-plus-tool_use": "each key of a call is on a line of its own",
    "Kimi-K3": "no grammar is known",
    "LFM2.5-8B-A1B": "texts are in single quotes",
    "MiniMax-M1": "calls are lines, and no list",
    "Reka-Edge": "characters above ASCII are escaped",
    "meta-llama-Llama-3.1-8B-Instruct": _NO_MARK,
    "meta-llama-Llama-3.2-3B-Instruct": _NO_MARK,
    "meta-llama-Llama-3.3-70B-Instruct": _NO_MARK,
    "muse-glimmer": "a header with the name comes before",
    "openbmb-MiniCPM5-1B": _LISTS,
    "unsloth-Apriel-1.5": _IDS,
}
"""Templates with calls that are not in the grammar of their notation, and why."""


def refuses(name: str) -> set[str]:
    """Return the conversations that may be refused with a template."""
    return {*REFUSES.get(name, ()), *THINKS_WITHOUT_SWITCH}


def loses(name: str) -> set[str]:
    """Return the parts of conversations that may be lost with a template."""
    return set(LOSES.get(name, ()))
