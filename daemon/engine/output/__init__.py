"""Turns generated tokens into text, reasoning and tool calls."""
