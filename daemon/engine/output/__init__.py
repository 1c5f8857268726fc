"""Tokens become text, reasoning and tool calls."""
