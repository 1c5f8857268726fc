"""Keyword arguments of loads and generations, as `TypedDict`s that both clients share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from mlx_sidecar._messages import Tool

ToolChoice: TypeAlias = Literal["auto", "none", "required"]
"""The model calls tools as it likes, not at all, or does nothing else."""

Speculation: TypeAlias = Literal["auto", "off", "ngram", "draft", "mtp"]
"""What may guess tokens ahead."""
CacheMode: TypeAlias = Literal["read_write", "read_only", "bypass"]
"""Use cached prefixes and store new ones, use them only, or neither."""


class LoadOptions(TypedDict, total=False):
    """
    How to load a model and how long to keep it.

    Attributes:
        revision: Branch, tag or commit of a Hub id. Default: its default branch.
        adapter: Absolute directory of a LoRA adapter. Default: none.
        pin: True keeps the model until it is invalidated or unpinned, False unpins it. Default: as it is.
        ttl: Seconds that the model may be idle before it is stale. Default: as it is, or as configured.
        skip_warmup: True skips the warm-up after a load. Default False.
        allow_download: True lets the daemon fetch a Hub model that is not on disk. Default False.
        estimate_only: True asks for the model's figures without loading it. Default False.
        context_length: Longest prompt plus completion in tokens, 2 or more, instead of what the model's configuration
            says. Default: as it is.
        update: True asks the Hub also for a model that is on disk, and fetches what is new; needs `allow_download`. The
            model's `warnings` tell why it was not possible. Default False.
    """

    revision: str
    adapter: str
    pin: bool | None
    ttl: float | None
    skip_warmup: bool
    allow_download: bool
    estimate_only: bool
    context_length: int | None
    update: bool


class GenerateOptions(TypedDict, total=False):
    """
    How to continue a prompt. An option that is None, or not given, has the daemon's default.

    Attributes:
        adapter: Absolute directory of a LoRA adapter. Default: none.
        max_tokens: Most tokens to generate, 1 or more; 0 with `prompt_logprobs` alone. Default 2,048, or what is left
            of the context.
        temperature: 0 (greedy) to 100. Default 0.
        top_p: Keep the most likely tokens whose probabilities sum to this; above 0, up to 1. Default 1 (all).
        top_k: Keep this many of the most likely tokens; 0 keeps all. Default 0.
        min_p: Keep tokens at least this likely relative to the most likely one; 0 to 1. Default 0 (all).
        seed: The same seed and request give the same tokens. Default: random. At temperature 0, seed, top_p, top_k and
            min_p have no effect and are refused.
        repetition_penalty: Above 0, up to 10. Default 1 (off).
        presence_penalty: -10 to 10. Default 0.
        frequency_penalty: -10 to 10. Default 0.
        logit_bias: What to add to the logits of these token ids; -100 to 100 each.
        stop: Text, or several, before which generation stops.
        stop_token_ids: Token ids at which generation stops.
        ignore_eos: True goes on past the model's own end-of-sequence tokens. Default False.
        stop_at_tool_call: True ends the answer with its first whole tool call. Default False.
        top_logprobs: 0 asks for the log-probability of each token, 1 to 20 also for those of the likeliest
            others. Default: none at all.
        cache_mode: "read_write" (default), "read_only" or "bypass".
        salt: Cached prefixes are shared only between requests with the same salt.
        keep: Seconds for which cached prefixes of other prompts are evicted before that of this one; above 0, up to
            86,400. Not with `cache_mode` "read_only" or "bypass". Default: it is cached as any other.
        request_id: Name of the request in the daemon's log. Default: one is made.
        require_loaded: True refuses a model that is not in memory instead of loading it. Default False.
        json_schema: The completion is JSON that this schema allows, a mapping or text. Of this and the next three, one
            at most can be given, and none with `ignore_eos`. With `tools` and the choice "auto" the answer is calls or
            JSON; `regex` and `grammar` cannot be had with them. Default: free text.
        json_object: True: the completion is a JSON object. Default False.
        regex: The completion as a whole matches this regular expression (Rust's syntax).
        grammar: The completion is of this context-free grammar (llguidance's variant of Lark's notation).
        priority: -2 to 2; a waiting request of higher priority goes first. Default 0.
        draft_model: A smaller model with the same tokenizer that guesses tokens: the same answer, sooner or later.
            Default: none.
        draft_tokens: Tokens that it guesses at a time, 1 to 16. Default 4.
        speculation: What may guess tokens ahead, which changes the speed and not the answer: "auto" (default), "off",
            "ngram": what followed the same tokens before, "draft", which needs `draft_model`, or "mtp": the model's own
            MTP head, where its checkpoint has one.
        model_defaults: True takes temperature, top_p, top_k, min_p and repetition_penalty from the model's own
            generation_config.json where they are not given. Default False.
        samples: Answers to the prompt, 1 to 16; more than one need a temperature above 0. Default 1.
        prompt_logprobs: 0 asks for the log-probability of each token of the prompt but the first, 1 to 20 also for
            those of the likeliest others. Default: none at all.
        tools: Functions that the model may call; chat prompts only.
        add_generation_prompt: False does not open the assistant's turn; chat prompts only. Default True.
        enable_thinking: Turns a reasoning model's thinking on or off, if its template reads a switch; chat prompts
            only. Default: as the template has it.
        tool_choice: "auto" (default), "none": the model is not told of the tools, or "required": the answer is calls,
            with arguments that the tools' schemas allow; chat prompts only.
        required_tool: The tool that is called, with "required"; chat prompts only. Default: any of them.
        allowed_tools: Names of the tools that may be called; the prompt has all of them; chat prompts only. Default:
            all of them.
        template_args: Further variables that the model's chat template reads, as values of JSON; chat prompts only.
            Default: none.
        reasoning_effort: How much a reasoning model reasons, in the words of its template, such as "low"; chat prompts
            only. Default: as the template has it.
        continue_final_message: True: the answer continues the last message, which is the assistant's; chat prompts
            only. Default False.
        reasoning_budget: Most tokens of the reasoning, which is ended there; chat prompts only. Default: no limit.
    """

    adapter: str
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    stop_at_tool_call: bool
    top_logprobs: int | None
    cache_mode: CacheMode
    salt: str
    keep: float | None
    request_id: str
    require_loaded: bool
    json_schema: Mapping[str, Any] | str | None
    json_object: bool
    regex: str | None
    grammar: str | None
    priority: int | None
    draft_model: str
    draft_tokens: int | None
    speculation: Speculation | None
    model_defaults: bool
    samples: int | None
    prompt_logprobs: int | None
    tools: Sequence[Tool | Mapping[str, Any]]
    add_generation_prompt: bool | None
    enable_thinking: bool | None
    tool_choice: ToolChoice | None
    required_tool: str
    allowed_tools: Sequence[str]
    template_args: Mapping[str, Any] | None
    reasoning_effort: str
    continue_final_message: bool
    reasoning_budget: int | None
