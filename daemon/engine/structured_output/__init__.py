"""Keeps answers to grammars by masks of tokens."""
